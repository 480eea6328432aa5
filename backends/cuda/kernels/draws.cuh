// One law, one draw: the inverse CDF and the race, as in `coupled_sampling.draws`.
#pragma once

#include "philox.cuh"
#include "target_law.cuh"

// Of a row of sums, the one in which `shared.threshold` is passed, else the last positive one; -1 if none is. The threshold
// loses what lies before.
template <class Shared, class SumOf>
__device__ int passed(Shared& shared, int count, SumOf sum_of) {
    double before = 0, before_chosen = 0;
    int chosen = -1;
    for (int i = 0; i < count; ++i) {
        const double sum = sum_of(i);
        if (!(sum > 0)) continue;
        chosen = i;
        before_chosen = before;
        before += sum;
        if (before > shared.threshold) break;
    }
    shared.threshold -= before_chosen;
    return chosen;
}

// `uniform` times the sum of chunk sums becomes the threshold, and shared.begin and shared.end the bounds of the chunk in which
// it is passed; begin is -1 where nothing is positive.
template <class Shared, class SumOf>
__device__ void find_chunk(Shared& shared, int size, int chunks, double uniform, SumOf sum_of) {
    each([&](int thread) {
        if (thread) return;
        double total = 0;
        for (int i = 0; i < chunks; ++i) total += sum_of(i);
        shared.threshold = uniform * total;
        const int chosen = passed(shared, chunks, sum_of);
        shared.begin = chosen < 0 ? -1 : chosen * CHUNK;
        shared.end = chosen < 0 || size - chosen * CHUNK < CHUNK ? size : (chosen + 1) * CHUNK;
    });
}

// The first token from shared.begin to shared.end at which the cumulative sum of `weight_of(token)` exceeds shared.threshold,
// else the last one of positive weight; -1 if no weight is positive. Each turn sums pieces and goes on inside the one that is
// passed.
template <class Shared, class Weight>
__device__ int token_past(Shared& shared, Weight weight_of) {
    int begin = shared.begin, end = shared.end;
    if (begin < 0) return -1;
    while (end - begin > FEW) {
        const int piece = (end - begin + Shared::warps - 1) / Shared::warps;
        each([&](int thread) {
            const int first = begin + thread / LANES * piece, last = first + piece < end ? first + piece : end;
            Sum sum;
            for (int token = first + thread % LANES; token < last; token += LANES) sum.add(weight_of(token));
            shared.partial[thread] = sum.value();
        });
        each([&](int thread) {
            if (thread >= Shared::warps) return;
            double sum = 0;
            for (int i = 0; i < LANES; ++i) {  // turned by the group's number, so that banks do not collide
                sum += shared.partial[thread * LANES + ((i + thread) & (LANES - 1))];
            }
            shared.group[thread] = sum;
        });
        each([&](int thread) {
            if (thread) return;
            const int chosen = passed(shared, Shared::warps, [&](int i) { return shared.group[i]; });
            shared.begin = chosen < 0 ? -1 : begin + chosen * piece;
            shared.end = chosen < 0 || begin + (chosen + 1) * piece > end ? end : begin + (chosen + 1) * piece;
        });
        begin = shared.begin;
        end = shared.end;
        if (begin < 0) return -1;
    }
    each([&](int thread) {
        if (begin + thread < end) shared.partial[thread] = double(weight_of(begin + thread));
    });
    each([&](int thread) {
        if (thread) return;
        const int chosen = passed(shared, end - begin, [&](int i) { return shared.partial[i]; });
        shared.winner = {0, chosen < 0 ? -1 : begin + chosen};
    });
    return shared.winner.index;
}

#define BAND 1e-5f      // more than the error of a quick approximation
#define NOTHING 1e-20f  // some token's product is at least 1 / (37 V)

// One thread's share of a race: argmax(law * weights) with the position's own race weights, which are kept nowhere.
//
// Almost every contender loses by more than the error of a quick approximation, and most of them can be seen to lose from
// their words alone, without a logarithm. The exact product is made only of those that come close to the best so far, and of
// each thread's winner; so the outcome is that of exact products throughout.
struct Contest {
    float limit;  // a product below it loses
    float best = 0, best_law = 0;
    Word best_word = 0;
    int winner = -1;

    __device__ explicit Contest(float limit) : limit(limit) {}

    __device__ void enter(float law, Word word, int token) {
        // With h the word's upper half, 1 - u > (2^32 - 1 - h) / 2^32, and a weight is 1 / -log(u) < 1 / (1 - u).
        if (law * 0x1p32f < limit * float(~(unsigned int)(word >> 32))) return;
        const float product = law * nearly_race_weight(word);
        if (product < NOTHING || product < best * (1 - BAND)) return;
        if (product > best * (1 + BAND) || law * race_weight(word) > best_law * race_weight(best_word)) {
            best = product;
            best_law = law;
            best_word = word;
            winner = token;
            if (best * (1 - BAND) > limit) limit = best * (1 - BAND);
        }
    }
    __device__ Scored outcome() const {
        return winner < 0 ? Scored{-1, 0x7fffffff} : Scored{best_law * race_weight(best_word), winner};
    }
};

// A race's best so far as one number that grows with the product, then with a smaller token; 0 before anybody entered.
__device__ inline Word as_lead(Scored one) { return Word(ordered(one.value)) << 32 | (0xffffffffu - (unsigned int)(one.index)); }

__device__ inline int leading_token(Word lead) { return lead ? int(0xffffffffu - (unsigned int)(lead)) : 0; }
