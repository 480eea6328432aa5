// How the threads of a block work together: in phases.
//
// `each(phase)` runs `phase(thread)` for every thread and then waits for all. Within a phase no thread reads what another
// one writes in it. What a phase left in shared memory may be read by everybody after it, and is written again no sooner
// than in the phase after the next. Sums and searches go in a fixed order; the only atomics are on integers. So the outcome
// does not depend on timing, and the same source runs one thread after the other on a CPU.
#pragma once

#ifndef THREADS  // of a block that has a slot for itself
#define THREADS 1024
#endif
#ifndef PART_THREADS  // of a block that shares a slot with others
#define PART_THREADS 256
#endif
#define PART_BLOCKS (1024 / PART_THREADS)  // of these on a multiprocessor at least: registers are limited to that end
#ifndef CHUNK  // tokens that are summed by themselves, whichever block does it
#define CHUNK 4096
#endif
#ifdef COUPLED_SAMPLING_EMULATION
#define UNROLL
#else
#define UNROLL _Pragma("unroll")
#endif
#define LANES 32
#define FOLD 8
#define DIGIT_BITS 6
#define BINS (1 << DIGIT_BITS)
#define FEW (2 * LANES)

#ifndef INFINITY  // NVRTC has no math.h
#define INFINITY __uint_as_float(0x7f800000u)
#define NAN __uint_as_float(0x7fffffffu)
#endif

static_assert(THREADS % LANES == 0 && THREADS >= FEW && THREADS <= 1024, "THREADS is a multiple of 32, from 64 to 1024");
static_assert(PART_THREADS % LANES == 0 && PART_THREADS >= FEW && PART_THREADS <= 1024, "as THREADS");
static_assert(CHUNK % (4 * PART_THREADS) == 0, "every thread has as many groups of four tokens in a whole chunk");

struct Scored {
    float value;
    int index;
};

// Shared memory of a block.
template <int Threads>
struct Block {
    static constexpr int threads = Threads, warps = Threads / LANES;
    double partial[Threads];
    double folded[2][Threads / FOLD];
    Scored best[Threads];
    Scored best_folded[2][Threads / FOLD];
    double group[warps];
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

// All of `from` by `combine` in a fixed tree, FOLD at a time, to two arrays in turn; the outcome goes to `result`. What is in
// `from` stays.
template <int Threads, class Value, class Combine>
__device__ __forceinline__ void fold(
    const Value* from, Value (&folded)[2][Threads / FOLD], Value& result, Combine combine
) {
    for (int count = Threads, level = 0; count > 1; ++level) {
        const int next = (count + FOLD - 1) / FOLD;
        Value* const to = folded[level % 2];
        each([&](int thread) {
            if (thread >= next) return;
            Value value = from[thread];
            for (int i = thread + next; i < count; i += next) value = combine(value, from[i]);
            if (next > 1) to[thread] = value;
            else result = value;
        });
        from = to;
        count = next;
    }
}

// The sum of shared.partial.
template <class Shared>
__device__ double sum_of_partials(Shared& shared) {
    fold<Shared::threads>(shared.partial, shared.folded, shared.sum, [](double one, double other) { return one + other; });
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
template <class Shared>
__device__ Scored best_of_all(Shared& shared) {
    fold<Shared::threads>(shared.best, shared.best_folded, shared.winner, [](Scored one, Scored other) {
        return beats(other, one) ? other : one;
    });
    return shared.winner;
}
