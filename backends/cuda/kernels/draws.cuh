// One law, one draw: the inverse CDF and the race, as in `coupled_sampling.draws`.
#pragma once

#include "block.cuh"

// The first token at which the cumulative sum of `weight_of(token)` exceeds `uniform` times its total, else the last one of
// positive weight; -1 if no weight is positive. Each turn sums pieces and goes on inside the one that is passed.
template <class Weight>
__device__ int inverse_cdf(Shared& shared, int size, double uniform, Weight weight_of) {
    int begin = 0, end = size;
    for (bool whole = true; whole || end - begin > FEW; whole = false) {
        const int piece = (end - begin + WARPS - 1) / WARPS;
        each([&](int thread) {
            const int first = begin + thread / LANES * piece, last = first + piece < end ? first + piece : end;
            Sum sum;
            for (int token = first + thread % LANES; token < last; token += LANES) sum.add(weight_of(token));
            shared.partial[thread] = sum.value();
        });
        sum_groups(shared);
        each([&](int thread) {
            if (thread) return;
            if (whole) {
                double total = 0;
                for (int i = 0; i < WARPS; ++i) total += shared.group[i];
                shared.threshold = uniform * total;
            }
            double before = 0;
            int chosen = -1;
            double before_chosen = 0;
            for (int i = 0; i < WARPS; ++i) {
                if (!(shared.group[i] > 0)) continue;
                chosen = i;
                before_chosen = before;
                before += shared.group[i];
                if (before > shared.threshold) break;
            }
            shared.threshold -= before_chosen;
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
        double cumulative = 0;
        int chosen = begin;
        for (int token = begin; token < end; ++token) {
            const double weight = shared.partial[token - begin];
            if (!(weight > 0)) continue;
            chosen = token;
            cumulative += weight;
            if (cumulative > shared.threshold) break;
        }
        shared.winner = {0, chosen};
    });
    return shared.winner.index;
}

// argmax(law * weights) with the position's own race weights, which are made here and kept nowhere.
//
// Almost every contender loses by more than the error of a quick approximation. The exact product is made only of those that
// come close to the best so far, and of each thread's winner; so the outcome is that of exact products throughout.
template <class Probability>
__device__ int race(Shared& shared, int size, Word seed, Word sequence, long long position, Probability law_of) {
    const float band = 1e-5f, nothing = 1e-20f;  // some token's product is at least 1 / (37 V)
    each([&](int thread) {
        float best = 0, best_law = 0;
        Word best_word = 0;
        int winner = -1;
        for (int group = thread; group < (size + 3) / 4; group += THREADS) {
            float law[4];
            bool possible = false;
            for (int i = 0; i < 4; ++i) {
                law[i] = 4 * group + i < size ? law_of(4 * group + i) : 0;
                possible = possible || law[i] > 0;
            }
            if (!possible) continue;
            const Words words = race_words(seed, sequence, position, group);
            for (int i = 0; i < 4; ++i) {
                const float product = law[i] * nearly_race_weight(words.word[i]);
                if (product < nothing || product < best * (1 - band)) continue;
                if (product > best * (1 + band) ||
                    law[i] * race_weight(words.word[i]) > best_law * race_weight(best_word)) {
                    best = product;
                    best_law = law[i];
                    best_word = words.word[i];
                    winner = 4 * group + i;
                }
            }
        }
        shared.best[thread] = winner < 0 ? Scored{-1, size} : Scored{best_law * race_weight(best_word), winner};
    });
    const int winner = best_of_all(shared).index;
    return winner < size ? winner : 0;
}
