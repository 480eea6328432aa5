// Reading: logits of three types, guided if asked for, and laws; four tokens at a time, in one load where addresses allow.
#pragma once

#include "block.cuh"
#include "tables.cuh"

struct Four {
    float value[4];
};

__device__ inline float half_to_float(unsigned short half) {
    const unsigned int sign = (unsigned int)(half & 0x8000u) << 16, rest = half & 0x7fffu;
    const float magnitude = rest >= 0x7c00u ? __uint_as_float(0x7f800000u | (rest << 13))
                                            : __uint_as_float(rest << 13) * 0x1p112f;
    return __uint_as_float(__float_as_uint(magnitude) | sign);
}

__device__ inline float widened(unsigned short bits, long long type) {
    return type == 1 ? half_to_float(bits) : __uint_as_float((unsigned int)(bits) << 16);
}

__device__ inline float read_logit(const void* logits, long long type, long long index) {
    if (type == 0) return static_cast<const float*>(logits)[index];
    return widened(static_cast<const unsigned short*>(logits)[index], type);
}

__device__ inline bool is_aligned(const void* memory, int bytes) { return Word(memory) % Word(bytes) == 0; }

// Four in one load of 16 bytes, of 8 for halves. The address is a multiple of that.
__device__ inline Four read_four(const void* logits, long long type, long long index) {
    if (type == 0) {
        const float4 found = *reinterpret_cast<const float4*>(static_cast<const float*>(logits) + index);
        return {{found.x, found.y, found.z, found.w}};
    }
    const ushort4 found = *reinterpret_cast<const ushort4*>(static_cast<const unsigned short*>(logits) + index);
    return {{widened(found.x, type), widened(found.y, type), widened(found.z, type), widened(found.w, type)}};
}

// A law in memory, where it is: read and written four tokens at a time; what lies at `end` and beyond is 0.
template <class Float>
struct Stored {
    Float* law;
    bool aligned;

    __device__ explicit Stored(Float* law) : law(law), aligned(is_aligned(law, 16)) {}

    __device__ Four four(int token, int end) const {
        if (aligned && token + 4 <= end) return read_four(law, 0, token);
        Four found;
        for (int i = 0; i < 4; ++i) found.value[i] = token + i < end ? law[token + i] : 0;
        return found;
    }
    __device__ void keep(int token, int end, const Four& four) const {
        if (aligned && token + 4 <= end) {
            *reinterpret_cast<float4*>(law + token) = {four.value[0], four.value[1], four.value[2], four.value[3]};
        } else {
            for (int i = 0; i < 4 && token + i < end; ++i) law[token + i] = four.value[i];
        }
    }
};

// The logits of one slot, guided if asked for: `coupled_sampling.guidance.GuidedProvider`. Or (V,) that were made of them.
struct Logits {
    const void* all;
    long long type, own, other;
    float scale, rest;
    bool guided, aligned;

    __device__ explicit Logits(const float* made)
        : all(made), type(0), own(0), other(0), scale(1), rest(0), guided(false), aligned(is_aligned(made, 16)) {}
    __device__ Logits(const Decision& decision, const Row& row, int batch_row, int slot) {
        const long long vocab_size = decision.vocab_size, width = decision.width;
        all = decision.logits;
        type = decision.logits_type;
        guided = decision.guided && row.guidance != 0 && row.guidance != 1;
        scale = float(row.guidance);
        rest = float(1 - row.guidance);
        own = other = (batch_row * width + slot) * vocab_size;
        if (decision.guided) {
            own = (2 * batch_row * width + slot) * vocab_size;
            // Slots without a partner have nothing to decide: before the unconditional prompt begins, and past the memory's end.
            const long long partner = slot - row.guidance_lag;
            const bool paired = partner >= 0 && partner < width;
            other = paired ? ((2 * batch_row + 1) * width + partner) * vocab_size : own;
            if (row.guidance == 0) own = other;
        }
        aligned = is_aligned(all, type ? 8 : 16) && own % 4 == 0 && other % 4 == 0;
    }
    __device__ float at(int token) const {
        const float conditional = read_logit(all, type, own + token);
        return guided ? mixed(conditional, read_logit(all, type, other + token)) : conditional;
    }
    // Tokens `token` to `token + 3`; what lies at `end` and beyond is -inf.
    __device__ Four four(int token, int end) const {
        Four found;
        if (aligned && token + 4 <= end) {
            found = read_four(all, type, own + token);
            if (!guided) return found;
            const Four unconditional = read_four(all, type, other + token);
            for (int i = 0; i < 4; ++i) found.value[i] = mixed(found.value[i], unconditional.value[i]);
        } else {
            for (int i = 0; i < 4; ++i) found.value[i] = token + i < end ? at(token + i) : -INFINITY;
        }
        return found;
    }
    // `visit(logit)` for this thread's share of all tokens.
    template <class Visit>
    __device__ __forceinline__ void share(int thread, int threads, int size, Visit visit) const {
        for (int token = 4 * thread; token < size; token += 4 * threads) {
            const Four found = four(token, size);
            for (int i = 0; i < 4; ++i) {
                if (token + i < size) visit(found.value[i]);
            }
        }
    }

private:
    __device__ float mixed(float conditional, float unconditional) const {
        return conditional == -INFINITY ? conditional : rest * unconditional + scale * conditional;
    }
};
