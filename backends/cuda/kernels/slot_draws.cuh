// Laws, races and draws of one slot, by blocks that share it or by one.
#pragma once

#include "places.cuh"

// A product that some token reaches: that of the draft, which often wins again, or of the likeliest token.
__device__ inline float race_limit(const Law& law, const Logits& logits, const Row& row, long long position, int draft) {
    float best = 0;
    for (int turn = 0; turn < 2; ++turn) {
        const int token = turn ? draft : law.highest.index;
        if (token < 0) continue;
        const Words words = race_words(row.seed, row.sequence, position, token / 4);
        const int i = token % 4;
        const Word word = i == 0 ? words.word[0] : i == 1 ? words.word[1] : i == 2 ? words.word[2] : words.word[3];
        const float product = law.probability(logits, token) * nearly_race_weight(word);
        if (product > best) best = product;
    }
    return best * (1 - BAND);
}

// Whether the draft passes the test against this law.
__device__ inline bool is_accepted(
    const Law& law, const Logits& logits, const Decision& decision, const Row& row, const Slot& slots, int slot, int draft
) {
    const double target = law.probability(logits, draft);
    const double proposed = slots.is_recycled(slot) ? draft_law(decision, row, slot)[draft] : 1.0f;
    const double ratio = target > 0 ? (proposed > target ? target / proposed : 1) : 0;
    return uniform_at(row.seed, row.sequence, row.start + slot + 1, row.round, ACCEPT) < ratio;
}

// The laws of a block's chunks to memory, if there is any, and its share of the race.
template <class Shared>
__device__ void race_laws(Shared& shared, const Decision& decision, const Row& row, const Place& place, const Logits& logits) {
    const Law law = place.site->law;
    const Stored<float> laws(row.laws ? row.laws + place.slot * decision.vocab_size : nullptr);
    each([&](int thread) {
        Contest contest(place.site->limit);
        for (int i = place.part; i < place.chunks; i += place.parts) {
            const int end = place.end(i);
            for (int token = place.begin(i) + 4 * thread; token < end; token += 4 * Shared::threads) {
                const Four four = law.probabilities(logits, token, end);
                if (laws.law) laws.keep(token, end, four);
                if (!(four.value[0] > 0 || four.value[1] > 0 || four.value[2] > 0 || four.value[3] > 0)) continue;
                const Words words = race_words(row.seed, row.sequence, place.position, token / 4);
                for (int j = 0; j < 4; ++j) contest.enter(four.value[j], words.word[j], token + j);
            }
        }
        shared.best[thread] = contest.outcome();
    });
    const Scored best = best_of_all(shared);
    each([&](int thread) {
        if (thread == 0 && best.value > 0) atomicMax(&place.site->lead, as_lead(best));
    });
}

// The law of one chunk to memory, and the sum of the weights that are to be drawn from.
template <class Shared>
__device__ void sum_laws(
    Shared& shared, const Decision& decision, const Row& row, const Place& place, const Logits& logits, const Draw& draw,
    int draft, int i
) {
    const Law law = place.site->law;
    const Stored<float> laws(row.laws + place.slot * decision.vocab_size);
    const bool residual = draw.way == FROM_RESIDUAL;
    const Stored<const float> proposed(residual ? draft_law(decision, row, place.slot) : nullptr);
    const int end = place.end(i);
    each([&](int thread) {
        Sum sum;
        for (int token = place.begin(i) + 4 * thread; token < end; token += 4 * Shared::threads) {
            const Four four = law.probabilities(logits, token, end);
            laws.keep(token, end, four);
            if (draw.way == KEEPS) continue;
            Four before = {{0, 0, 0, 0}};
            if (residual) before = proposed.four(token, end);
            for (int j = 0; j < 4; ++j) sum.add(draw.weight(four.value[j], before.value[j], token + j == draft));
        }
        shared.partial[thread] = sum.value();
    });
    if (draw.way == KEEPS) return;
    const double sum = sum_of_partials(shared);
    each([&](int thread) {
        if (thread == 0) place.chunk[i].sum = sum;
    });
}

// A draw from the slot's weights, or from the target law where nothing is left of it.
__device__ inline int drawn(
    Block<THREADS>& shared, const Decision& decision, const Row& row, const Place& place, const Draw& draw, int draft
) {
    const float* target = row.laws + place.slot * decision.vocab_size;
    const float* proposed = draw.way == FROM_RESIDUAL ? draft_law(decision, row, place.slot) : nullptr;
    const double uniform = uniform_at(row.seed, row.sequence, row.start + place.slot + 1, row.round, draw.purpose);
    find_chunk(shared, place.size, place.chunks, uniform, [&](int i) { return place.chunk[i].sum; });
    int token = token_past(shared, [&](int i) {
        return draw.weight(target[i], proposed ? proposed[i] : 0, i == draft);
    });
    if (token >= 0) return token;
    each([&](int thread) {
        Sum sum;
        for (int i = thread; i < place.size; i += THREADS) sum.add(target[i]);
        shared.partial[thread] = sum.value();
    });
    const double total = sum_of_partials(shared);
    each([&](int thread) {
        if (thread) return;
        shared.threshold = uniform * total;
        shared.begin = 0;
        shared.end = place.size;
    });
    token = token_past(shared, [&](int i) { return target[i]; });
    return token < 0 ? 0 : token;
}
