// Philox 4x64 with 10 rounds (Salmon et al. 2011), and the frozen layout of `coupled_sampling.noise` on top of it.
//
// Words and uniforms are those of NumPy bit for bit. A race weight, 1 / -log(u), depends on the logarithm of the device
// (at most 1 ulp in float64), so it is NumPy's after rounding to float32 in all but rare cases.
#pragma once

#include "tables.cuh"

struct Words {
    Word word[4];
};

__device__ inline Words philox(Word key0, Word key1, Word counter0, Word counter1, Word counter2) {
    Word a = counter0, b = counter1, c = counter2, d = 0;
    for (int round = 0; round < 10; ++round) {
        const Word high_a = __umul64hi(0xD2E7470EE14C6C93ull, a), low_a = 0xD2E7470EE14C6C93ull * a;
        const Word high_c = __umul64hi(0xCA5A826395121157ull, c), low_c = 0xCA5A826395121157ull * c;
        a = high_c ^ b ^ key0;
        b = low_c;
        c = high_a ^ d ^ key1;
        d = low_a;
        key0 += 0x9E3779B97F4A7C15ull;
        key1 += 0xBB67AE8584CAA73Bull;
    }
    return {{a, b, c, d}};
}

// What a uniform is for: `coupled_sampling.noise.Purpose`.
enum Purpose { ACCEPT = 0, RESIDUAL = 1, REDRAFT = 2 };

__device__ inline double uniform_of(Word word) { return double(word >> 11) * 0x1p-53; }

__device__ inline double uniform_at(Word seed, Word sequence, long long position, long long round, Purpose purpose) {
    return uniform_of(philox(seed, sequence, Word(position) + 1, Word(round), 0).word[purpose]);
}

// The words of tokens 4 * group to 4 * group + 3 of a position.
__device__ inline Words race_words(Word seed, Word sequence, long long position, int group) {
    return philox(seed, sequence, Word(group) + 1, Word(position), 1);
}

__device__ inline float race_weight(Word word) {
    const double uniform = (double(word >> 12) + 0.5) * 0x1p-52;
    return float(-1.0 / log(uniform));
}

// The same to a relative error of a few 1e-7 without float64 logarithms, of which some devices make 1/64 as many.
__device__ inline float nearly_race_weight(Word word) {
    const Word bits = word >> 12, top = 0xFFFFFFFFFFFFFull;
    const bool large = bits >> 51;
    const float distance = (float(large ? top - bits : bits) + 0.5f) * 0x1p-52f;
    return -1.0f / (large ? log1pf(-distance) : logf(distance));
}
