// From logits to the target law, as in `coupled_sampling.target`: guidance, temperature, top-k, top-p, min-p, softmax.
//
// A law is not stored but described: a handful of numbers per slot from which the probability of any token follows. Top-k
// and top-p are thresholds on logits and weights, found by radix selection, so any k will do and ties stay.
#pragma once

#include "block.cuh"

// The struct `Row` and the struct `Decision` are mirrored by the NumPy types of the same names in kernels.py.
struct Row {
    long long start, known, recycled, fresh, draws, round;
    Word seed, sequence;
    const float* draft_laws;  // laws of the round before; the one of slot j lies at (j + draft_laws_ahead) * V
    long long draft_laws_ahead;
    float* laws;  // of this round, slot j at j * V
    double temperature, top_p, min_p;
    long long top_k;  // 0 keeps all
    double guidance;
    long long guidance_lag;
};

struct Decision {
    const void* logits;
    long long logits_type;  // 0 float32, 1 float16, 2 bfloat16
    long long guided;       // rows 2b are conditional, 2b + 1 unconditional
    long long width, vocab_size;
    const Row* rows;
    const long long* tokens_in;
    long long redraft;     // 0 none, 1 independent, 2 maximal, 3 gumbel
    long long acceptance;  // 0 none, 1 rejection, 2 match
    long long* tokens;
    long long* committed;
    float* highest_logits;
    int* accepted;
};

enum Redraft { NO_REDRAFT = 0, INDEPENDENT = 1, MAXIMAL = 2, GUMBEL = 3 };
enum Acceptance { NO_ACCEPTANCE = 0, REJECTION = 1, MATCH = 2 };

// Which slots decide something and which of them test a draft: `HostStep._slots`.
struct Slot {
    int first, drafts_end, end;  // of the row: the first deciding slot, one past the last draft's slot, one past the last

    __device__ explicit Slot(const Row& row) {
        first = int(row.known) - 1;
        end = row.draws ? int(row.known + row.recycled + row.fresh) : first;
        drafts_end = end - 1;
    }
    __device__ bool decides(int slot) const { return slot >= first && slot < end; }
    __device__ bool has_draft(int slot) const { return slot >= first && slot < drafts_end; }
};

__device__ inline float half_to_float(unsigned short half) {
    const unsigned int sign = (unsigned int)(half & 0x8000u) << 16, rest = half & 0x7fffu;
    const float magnitude = rest >= 0x7c00u ? __uint_as_float(0x7f800000u | (rest << 13))
                                            : __uint_as_float(rest << 13) * 0x1p112f;
    return __uint_as_float(__float_as_uint(magnitude) | sign);
}

__device__ inline float read_logit(const void* logits, long long type, long long index) {
    if (type == 0) return static_cast<const float*>(logits)[index];
    const unsigned short bits = static_cast<const unsigned short*>(logits)[index];
    return type == 1 ? half_to_float(bits) : __uint_as_float((unsigned int)(bits) << 16);
}

// The logits of one slot, guided if asked for: `coupled_sampling.guidance.GuidedProvider`.
struct Logits {
    const void* all;
    long long type, own, other;
    float scale, rest;
    bool guided;

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
            const bool begun = slot >= row.guidance_lag;  // before, only the conditional row exists
            other = begun ? ((2 * batch_row + 1) * width + slot - row.guidance_lag) * vocab_size : own;
            if (row.guidance == 0) own = other;
        }
    }
    __device__ float at(int token) const {
        const float conditional = read_logit(all, type, own + token);
        if (!guided || conditional == -INFINITY) return conditional;
        return rest * read_logit(all, type, other + token) + scale * conditional;
    }
};

// Unsigned numbers in the order of floats.
__device__ inline unsigned int ordered(float value) {
    const unsigned int bits = __float_as_uint(value);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ inline float from_ordered(unsigned int key) {
    return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

// The largest key such that the amounts of all keys from it upward reach `wanted`, or, where `wanted` is 0, `fraction` of
// the sum of all amounts. Amounts are integers, so that their order does not matter.
template <class Key, class Amount>
__device__ unsigned int select(
    Shared& shared, int size, int key_bits, unsigned long long wanted, double fraction, Key key_of, Amount amount_of
) {
    unsigned int prefix = 0;
    for (int done = 0; done < key_bits; done += DIGIT_BITS) {
        const int shift = key_bits - done > DIGIT_BITS ? key_bits - done - DIGIT_BITS : 0;
        const int above = key_bits - done;  // bits from here on are the prefix found so far
        each([&](int thread) {
            for (int i = thread; i < BINS * LANES; i += THREADS) shared.histogram[i / LANES][i % LANES] = 0;
        });
        each([&](int thread) {
            for (int token = thread; token < size; token += THREADS) {
                const unsigned int key = key_of(token);
                if (done && key >> above != prefix) continue;
                const unsigned int digit = (key >> shift) & ((1u << (above - shift)) - 1);
                atomicAdd(&shared.histogram[digit][thread % LANES], amount_of(token));
            }
        });
        each([&](int thread) {
            if (thread < BINS) {
                unsigned long long sum = 0;
                for (int i = 0; i < LANES; ++i) sum += shared.histogram[thread][(i + thread) % LANES];
                shared.bin[thread] = sum;
            }
        });
        each([&](int thread) {
            if (thread) return;
            unsigned long long left = done ? shared.wanted : wanted;
            if (!left) {
                unsigned long long total = 0;
                for (int i = 0; i < BINS; ++i) total += shared.bin[i];
                left = (unsigned long long)(ceil(fraction * double(total)));
                left = left < 1 ? 1 : left > total ? total : left;
            }
            int digit = BINS - 1;
            while (digit > 0 && shared.bin[digit] < left) left -= shared.bin[digit--];
            shared.wanted = left;
            shared.prefix = (prefix << (above - shift)) | (unsigned int)(digit);
        });
        prefix = shared.prefix;
    }
    return prefix;
}

// The law of one slot; every thread holds the same.
struct Law {
    Scored highest;
    float temperature;
    float least_logit, least_weight;
    float total;

    __device__ bool usable() const { return highest.value > -INFINITY && highest.value < INFINITY; }

    __device__ float exponential(float logit) const { return expf((logit - highest.value) / temperature); }

    __device__ float weight(float logit) const {
        if (logit < least_logit) return 0;
        const float weight = exponential(logit);
        return weight < least_weight ? 0 : weight;
    }
    __device__ float probability(const Logits& logits, int token) const {
        if (temperature == 0) return token == highest.index ? 1 : 0;
        return weight(logits.at(token)) / total;
    }
};

// One read of the logits: the largest one, and the sum of exponentials below a maximum that rises on the way.
__device__ inline Law largest_and_total(Shared& shared, const Logits& logits, int size, float temperature) {
    Law law = {{0, 0}, temperature, -INFINITY, 0, 1};
    const float divisor = temperature == 0 ? 1 : temperature;
    each([&](int thread) {
        Scored best = {-INFINITY, thread < size ? thread : size - 1};
        Sum sum;
        for (int token = thread; token < size; token += THREADS) {
            const float logit = logits.at(token);
            if (is_nan(logit) || is_nan(best.value)) {
                best.value = NAN;
            } else if (logit > best.value) {
                const float shrink = best.value == -INFINITY || logit == INFINITY ? 0 : expf((best.value - logit) / divisor);
                sum.high *= shrink;
                sum.low *= shrink;
                sum.add(1);
                best = {logit, token};
            } else if (logit > -INFINITY && logit < INFINITY) {
                sum.add(expf((logit - best.value) / divisor));
            }
        }
        shared.best[thread] = best;
        shared.partial[thread] = sum.value();
    });
    law.highest = best_of_all(shared);
    if (!law.usable() || temperature == 0) return law;
    each([&](int thread) {
        const float own = shared.best[thread].value;
        shared.partial[thread] *= own == -INFINITY ? 0 : double(law.exponential(own));
    });
    law.total = float(sum_of_partials(shared));
    return law;
}

__device__ inline Law target_law(Shared& shared, const Logits& logits, const Row& row, int size) {
    Law law = largest_and_total(shared, logits, size, float(row.temperature));
    const bool limited = row.top_k > 0 && row.top_k < size;
    if (!law.usable() || law.temperature == 0 || !(limited || row.top_p < 1 || row.min_p > 0)) return law;
    if (limited) {
        const auto key_of = [&](int token) { return ordered(logits.at(token)); };
        const auto one = [&](int) { return 1ull; };
        law.least_logit = from_ordered(select(shared, size, 32, (unsigned long long)(row.top_k), 0, key_of, one));
    }
    if (row.top_p < 1) {
        // Weights are at most 1. As integers their sum stays below 2**62.
        int scale = 62;
        for (int rest = size; rest; rest >>= 1) --scale;
        const float unit = __uint_as_float((unsigned int)(127 + scale) << 23);
        const double slack = 8 * 0x1p-23;  // as in `target._nucleus_threshold`
        const auto key_of = [&](int token) { return __float_as_uint(law.weight(logits.at(token))); };
        const auto mass = [&](int token) { return (unsigned long long)(law.weight(logits.at(token)) * unit); };
        law.least_weight = __uint_as_float(select(shared, size, 30, 0, row.top_p * (1 - slack), key_of, mass));
    }
    if (float(row.min_p) > law.least_weight) law.least_weight = float(row.min_p);
    each([&](int thread) {
        Sum sum;
        for (int token = thread; token < size; token += THREADS) sum.add(law.weight(logits.at(token)));
        shared.partial[thread] = sum.value();
    });
    law.total = float(sum_of_partials(shared));
    return law;
}
