// From logits to the target law, as in `coupled_sampling.target`: guidance, temperature, top-k, top-p, min-p, softmax.
//
// A law is not stored but described: a handful of numbers per slot from which the probability of any token follows. Top-k
// and top-p are thresholds on logits and weights, found by radix selection, so any k will do and ties stay.
//
// Maximum and total come from chunks of CHUNK tokens, each measured by itself and combined in the order of chunks: they are the
// same whichever block measured which chunk.
#pragma once

#include "logits.cuh"

// Unsigned numbers in the order of floats.
__device__ inline unsigned int ordered(float value) {
    const unsigned int bits = __float_as_uint(value);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ inline float from_ordered(unsigned int key) {
    return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

// Shared memory of a selection.
struct Histogram {
    // One column per lane: lanes of a warp never meet in one counter.
    unsigned long long count[BINS][LANES];
    unsigned long long bin[BINS];
    unsigned long long wanted;
    unsigned int prefix;
};

// The largest key such that the amounts of all keys from it upward reach `wanted`, or, where `wanted` is 0, `fraction` of
// the sum of all amounts. Amounts are integers, so that their order does not matter.
template <int Threads, class Key, class Amount>
__device__ unsigned int select(
    Histogram& histogram, const Logits& logits, int size, int key_bits, unsigned long long wanted, double fraction,
    Key key_of, Amount amount_of
) {
    unsigned int prefix = 0;
    for (int done = 0; done < key_bits; done += DIGIT_BITS) {
        const int shift = key_bits - done > DIGIT_BITS ? key_bits - done - DIGIT_BITS : 0;
        const int above = key_bits - done;  // bits from here on are the prefix found so far
        each([&](int thread) {
            for (int i = thread; i < BINS * LANES; i += Threads) histogram.count[i / LANES][i % LANES] = 0;
        });
        each([&](int thread) {
            logits.share(thread, Threads, size, [&](float logit) {
                const unsigned int key = key_of(logit);
                if (done && key >> above != prefix) return;
                const unsigned int digit = (key >> shift) & ((1u << (above - shift)) - 1);
                atomicAdd(&histogram.count[digit][thread % LANES], amount_of(logit));
            });
        });
        each([&](int thread) {
            if (thread < BINS) {
                unsigned long long sum = 0;
                for (int i = 0; i < LANES; ++i) sum += histogram.count[thread][(i + thread) % LANES];
                histogram.bin[thread] = sum;
            }
        });
        each([&](int thread) {
            if (thread) return;
            unsigned long long left = done ? histogram.wanted : wanted;
            if (!left) {
                unsigned long long total = 0;
                for (int i = 0; i < BINS; ++i) total += histogram.bin[i];
                left = (unsigned long long)(ceil(fraction * double(total)));
                left = left < 1 ? 1 : left > total ? total : left;
            }
            int digit = BINS - 1;
            while (digit > 0 && histogram.bin[digit] < left) left -= histogram.bin[digit--];
            histogram.wanted = left;
            histogram.prefix = (prefix << (above - shift)) | (unsigned int)(digit);
        });
        prefix = histogram.prefix;
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
    // Of tokens `token` to `token + 3`; 0 at `end` and beyond.
    __device__ Four probabilities(const Logits& logits, int token, int end) const {
        Four found;
        if (temperature == 0) {
            for (int i = 0; i < 4; ++i) found.value[i] = token + i == highest.index ? 1 : 0;
            return found;
        }
        found = logits.four(token, end);
        for (int i = 0; i < 4; ++i) found.value[i] = weight(found.value[i]) / total;
        return found;
    }
};

// What is known of one chunk: its largest logit and the sum of exponentials below that. Later, when both have been used:
// the sum of the weights that the slot draws from.
struct Chunk {
    Scored highest;
    double sum;
};

// One read of the logits from `begin` to `end`. Each thread has its tokens at once, so it knows its maximum before it sums.
template <class Shared>
__device__ Chunk measured(Shared& shared, const Logits& logits, int begin, int end, float temperature) {
    each([&](int thread) {
        constexpr int turns = (CHUNK + 4 * Shared::threads - 1) / (4 * Shared::threads);
        Four logit[turns];
        UNROLL
        for (int turn = 0; turn < turns; ++turn) logit[turn] = logits.four(begin + 4 * (turn * Shared::threads + thread), end);
        Scored best = {-INFINITY, end - 1};
        UNROLL
        for (int turn = 0; turn < turns; ++turn) {
            for (int i = 0; i < 4; ++i) {
                const float value = logit[turn].value[i];
                if (is_nan(value)) best.value = NAN;
                else if (value > best.value) best = {value, begin + 4 * (turn * Shared::threads + thread) + i};
            }
        }
        Sum sum;
        if (temperature > 0 && best.value > -INFINITY && best.value < INFINITY) {
            UNROLL
            for (int turn = 0; turn < turns; ++turn) {
                for (int i = 0; i < 4; ++i) sum.add(expf((logit[turn].value[i] - best.value) / temperature));
            }
        }
        shared.best[thread] = best;
        shared.partial[thread] = sum.value();
    });
    const Scored highest = best_of_all(shared);
    each([&](int thread) {
        const float own = shared.best[thread].value;
        if (own > -INFINITY && temperature > 0) shared.partial[thread] *= double(expf((own - highest.value) / temperature));
    });
    return {highest, sum_of_partials(shared)};
}

// The law without top-k, top-p and min-p from what is known of its chunks.
template <class Shared>
__device__ Law combined(Shared& shared, const Chunk* chunk, int chunks, float temperature) {
    Law law = {{0, 0}, temperature, -INFINITY, 0, 1};
    each([&](int thread) {
        Scored best = chunk[0].highest;
        for (int i = thread; i < chunks; i += Shared::threads) {
            if (beats(chunk[i].highest, best)) best = chunk[i].highest;
        }
        shared.best[thread] = best;
    });
    law.highest = best_of_all(shared);
    if (!law.usable() || temperature == 0) return law;
    each([&](int thread) {
        double sum = 0;
        for (int i = thread; i < chunks; i += Shared::threads) {
            const float own = chunk[i].highest.value;
            if (own > -INFINITY) sum += chunk[i].sum * double(law.exponential(own));
        }
        shared.partial[thread] = sum;
    });
    law.total = float(sum_of_partials(shared));
    return law;
}

__device__ inline bool is_warped(const Row& row, int size) {
    return float(row.temperature) > 0 && ((row.top_k > 0 && row.top_k < size) || row.top_p < 1 || row.min_p > 0);
}

// Thresholds for top-k, top-p and min-p, and the total of what stays: by one block, which reads the slot again for each digit.
template <class Shared>
__device__ void narrow(Shared& shared, Histogram& histogram, Law& law, const Logits& logits, const Row& row, int size) {
    if (row.top_k > 0 && row.top_k < size) {
        const auto key_of = [&](float logit) { return ordered(logit); };
        const auto one = [&](float) { return 1ull; };
        const unsigned long long wanted = (unsigned long long)(row.top_k);
        law.least_logit = from_ordered(select<Shared::threads>(histogram, logits, size, 32, wanted, 0, key_of, one));
    }
    if (row.top_p < 1) {
        // Weights are at most 1. As integers their sum stays below 2**62.
        int scale = 62;
        for (int rest = size; rest; rest >>= 1) --scale;
        const float unit = __uint_as_float((unsigned int)(127 + scale) << 23);
        const double fraction = row.top_p * (1 - 8 * 0x1p-23);  // as in `target._nucleus`
        // Tokens are told apart by their logits: weights may tie by rounding alone.
        const auto key_of = [&](float logit) { return ordered(logit); };
        const auto mass = [&](float logit) { return (unsigned long long)(law.weight(logit) * unit); };
        const float least = from_ordered(select<Shared::threads>(histogram, logits, size, 32, 0, fraction, key_of, mass));
        if (least > law.least_logit) law.least_logit = least;
    }
    if (float(row.min_p) == 1) law.least_logit = law.highest.value;
    else law.least_weight = float(row.min_p);
    each([&](int thread) {
        Sum sum;
        logits.share(thread, Shared::threads, size, [&](float logit) { sum.add(law.weight(logit)); });
        shared.partial[thread] = sum.value();
    });
    law.total = float(sum_of_partials(shared));
}
