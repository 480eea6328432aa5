// How the threads of a block work together: in phases.
//
// `each(phase)` runs `phase(thread)` for every thread and then waits for all. Within a phase no thread reads what another
// one writes in it. What a phase left in shared memory may be read by everybody after it, and is written again no sooner
// than in the phase after the next. Sums and searches go in a fixed order; the only atomics are on integers. So the outcome
// does not depend on timing, and the same source runs one thread after the other on a CPU.
#pragma once

#ifndef THREADS
#define THREADS 1024
#endif
#define LANES 32
#define WARPS (THREADS / LANES)
#define DIGIT_BITS 6
#define BINS (1 << DIGIT_BITS)
#define FEW (2 * LANES)

#ifndef INFINITY  // NVRTC has no math.h
#define INFINITY __uint_as_float(0x7f800000u)
#define NAN __uint_as_float(0x7fffffffu)
#endif

static_assert(THREADS % LANES == 0 && THREADS >= FEW && THREADS <= 1024, "THREADS is a multiple of 32, from 64 to 1024");

struct Scored {
    float value;
    int index;
};

struct Shared {
    double partial[THREADS];
    Scored best[THREADS];
    double group[WARPS];
    Scored group_best[WARPS];
    // One column per lane: lanes of a warp never meet in one counter.
    unsigned long long histogram[BINS][LANES];
    unsigned long long bin[BINS];
    unsigned long long wanted;
    unsigned int prefix;
    double sum;
    Scored winner;
    double threshold;
    int begin;
    int end;
};

#ifndef COUPLED_SAMPLING_EMULATION
template <class Phase>
__device__ __forceinline__ void each(Phase phase) {
    phase(int(threadIdx.x));
    __syncthreads();
}
#endif

// A sum of floats kept as two of them: as exact as a float64 sum, and fast where float64 is not.
struct Sum {
    float high = 0, low = 0;

    __device__ void add(float value) {
        const float total = high + value, share = total - high;
        low += (high - (total - share)) + (value - share);
        high = total;
    }
    __device__ double value() const { return double(high) + double(low); }
};

__device__ inline void sum_groups(Shared& shared) {
    each([&](int thread) {
        if (thread < WARPS) {
            double sum = 0;
            for (int i = 0; i < LANES; ++i) {  // turned by the group's number, so that banks do not collide
                sum += shared.partial[thread * LANES + ((i + thread) & (LANES - 1))];
            }
            shared.group[thread] = sum;
        }
    });
}

// The sum of shared.partial.
__device__ inline double sum_of_partials(Shared& shared) {
    sum_groups(shared);
    each([&](int thread) {
        if (thread == 0) {
            double sum = 0;
            for (int i = 0; i < WARPS; ++i) sum += shared.group[i];
            shared.sum = sum;
        }
    });
    return shared.sum;
}

__device__ inline bool is_nan(float value) { return value != value; }

// NaN beats everything, then the larger value, then the smaller index.
__device__ inline bool beats(Scored one, Scored other) {
    if (is_nan(other.value)) return false;
    if (is_nan(one.value)) return true;
    return one.value > other.value || (one.value == other.value && one.index < other.index);
}

// The winner among shared.best.
__device__ inline Scored best_of_all(Shared& shared) {
    each([&](int thread) {
        if (thread < WARPS) {
            Scored best = shared.best[thread * LANES + (thread & (LANES - 1))];
            for (int i = 1; i < LANES; ++i) {
                const Scored other = shared.best[thread * LANES + ((i + thread) & (LANES - 1))];
                if (beats(other, best)) best = other;
            }
            shared.group_best[thread] = best;
        }
    });
    each([&](int thread) {
        if (thread == 0) {
            Scored best = shared.group_best[0];
            for (int i = 1; i < WARPS; ++i) {
                if (beats(shared.group_best[i], best)) best = shared.group_best[i];
            }
            shared.winner = best;
        }
    });
    return shared.winner;
}
