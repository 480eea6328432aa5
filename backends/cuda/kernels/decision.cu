// A step's decisions from its logits, one block per slot: `coupled_sampling.step.HostStep` on the device.
//
// `target_laws` makes each deciding slot's law and tests its draft; `decide` then knows each row's first refusal, corrects it
// from the residual and redrafts what follows. Slots that decide nothing do no work. Grid (width, rows), THREADS threads.
#include "philox.cuh"
#include "target_law.cuh"
#include "draws.cuh"

#define UNUSABLE 2

extern "C" __global__ void __launch_bounds__(THREADS) target_laws(const Decision decision) {
    __shared__ Shared shared;
    const int slot = int(blockIdx.x), batch_row = int(blockIdx.y);
    const long long site = batch_row * decision.width + slot;
    const int size = int(decision.vocab_size);
    const Row& row = decision.rows[batch_row];
    const Slot slots(row);
    if (!slots.decides(slot)) {
        each([&](int thread) {
            if (thread == 0) decision.highest_logits[site] = 0;
        });
        return;
    }
    const Logits logits(decision, row, batch_row, slot);
    const Law law = target_law(shared, logits, row, size);
    const bool shares = decision.acceptance != REJECTION;
    if (law.usable() && row.laws) {
        float* laws = row.laws + slot * decision.vocab_size;
        each([&](int thread) {
            for (int token = thread; token < size; token += THREADS) laws[token] = law.probability(logits, token);
        });
    }
    int own = 0;
    if (law.usable() && shares) {
        own = race(shared, size, row.seed, row.sequence, row.start + slot + 1, [&](int token) {
            return law.probability(logits, token);
        });
    }
    each([&](int thread) {
        if (thread) return;
        decision.highest_logits[site] = law.highest.value;
        if (!law.usable()) {
            decision.accepted[site] = UNUSABLE;
            return;
        }
        const int draft = slots.has_draft(slot) ? int(decision.tokens_in[site + 1]) : -1;
        if (shares) {
            decision.tokens[site] = own;
            decision.accepted[site] = own == draft;
            return;
        }
        decision.accepted[site] = 0;
        if (draft < 0) return;
        const double target = law.probability(logits, draft);
        const bool recycled = slot < slots.first + row.recycled;
        const double proposed =
            recycled ? row.draft_laws[(slot + row.draft_laws_ahead) * decision.vocab_size + draft] : 1.0f;
        const double ratio = target > 0 ? (proposed > target ? target / proposed : 1) : 0;
        const double uniform = uniform_at(row.seed, row.sequence, row.start + slot + 1, row.round, ACCEPT);
        decision.accepted[site] = uniform < ratio;
    });
}

// A draw from max(target - draft law, 0), or from the target law where nothing is left of it.
__device__ inline int corrected(Shared& shared, const Decision& decision, const Row& row, const Slot& slots, int slot, int draft) {
    const int size = int(decision.vocab_size);
    const float* target = row.laws + slot * decision.vocab_size;
    const double uniform = uniform_at(row.seed, row.sequence, row.start + slot + 1, row.round, RESIDUAL);
    const bool recycled = slot < slots.first + row.recycled;
    int token = -1;
    if (slots.has_draft(slot) && recycled) {
        const float* proposed = row.draft_laws + (slot + row.draft_laws_ahead) * decision.vocab_size;
        token = inverse_cdf(shared, size, uniform, [&](int i) {
            const float left = target[i] - proposed[i];
            return left > 0 ? left : 0.0f;
        });
    } else if (slots.has_draft(slot)) {
        token = inverse_cdf(shared, size, uniform, [&](int i) { return i == draft ? 0.0f : target[i]; });
    }
    if (token >= 0) return token;
    token = inverse_cdf(shared, size, uniform, [&](int i) { return target[i]; });
    return token < 0 ? 0 : token;
}

extern "C" __global__ void __launch_bounds__(THREADS) decide(const Decision decision) {
    __shared__ Shared shared;
    const int slot = int(blockIdx.x), batch_row = int(blockIdx.y);
    const long long first_site = batch_row * decision.width, site = first_site + slot;
    const int size = int(decision.vocab_size);
    const Row& row = decision.rows[batch_row];
    const Slot slots(row);
    if (!slots.decides(slot)) {
        each([&](int thread) {
            if (thread) return;
            decision.tokens[site] = 0;
            if (!row.draws && slot == 0) decision.committed[batch_row] = 0;
        });
        return;
    }
    each([&](int thread) {  // the first refusal, and by its value whether any slot is unusable
        Scored best = {0, slots.end};
        for (int i = slots.first + thread; i < slots.end; i += THREADS) {
            const int found = decision.accepted[first_site + i];
            const Scored other = {found == UNUSABLE ? 2.0f : found ? 0.0f : 1.0f, i};
            if (beats(other, best)) best = other;
        }
        shared.best[thread] = best;
    });
    const Scored refusal = best_of_all(shared);
    const int last = refusal.index;
    if (refusal.value > 1) {  // the host refuses the step
        each([&](int thread) {
            if (thread) return;
            decision.tokens[site] = 0;
            decision.committed[batch_row] = 0;
        });
        return;
    }
    const int draft = slots.has_draft(slot) ? int(decision.tokens_in[site + 1]) : 0;
    int token = draft;
    if (decision.acceptance == REJECTION) {
        const bool everywhere = decision.redraft == MAXIMAL;
        if (slot == last || (everywhere && !decision.accepted[site])) {
            token = corrected(shared, decision, row, slots, slot, draft);
        } else if (slot > last && decision.redraft == INDEPENDENT) {
            const float* law = row.laws + slot * decision.vocab_size;
            const double uniform = uniform_at(row.seed, row.sequence, row.start + slot + 1, row.round, REDRAFT);
            token = inverse_cdf(shared, size, uniform, [&](int i) { return law[i]; });
        } else if (slot > last && decision.redraft == GUMBEL) {
            const float* law = row.laws + slot * decision.vocab_size;
            token = race(shared, size, row.seed, row.sequence, row.start + slot + 1, [&](int i) { return law[i]; });
        }
    }
    each([&](int thread) {
        if (thread) return;
        if (decision.acceptance == REJECTION) decision.tokens[site] = token;
        if (slot == slots.first) decision.committed[batch_row] = last - slots.first + 1;
    });
}

struct Draws {
    Word seed, sequence;
    long long position, round, vocab_size;
    double* uniforms;  // float64 (4,), may be null
    Word* words;       // uint64 (V,), may be null
    float* weights;    // float32 (V,), may be null
};

// The noise of one position, for whoever wants to see it. Any grid.
extern "C" __global__ void __launch_bounds__(THREADS) noise(const Draws draws) {
    const int block = int(blockIdx.x), blocks = int(gridDim.x);
    each([&](int thread) {
        if (block == 0 && thread < 4 && draws.uniforms) {
            const Words words = philox(draws.seed, draws.sequence, Word(draws.position) + 1, Word(draws.round), 0);
            draws.uniforms[thread] = uniform_of(words.word[thread]);
        }
        for (long long group = block * THREADS + thread; 4 * group < draws.vocab_size; group += blocks * THREADS) {
            const Words words = race_words(draws.seed, draws.sequence, draws.position, int(group));
            for (int i = 0; i < 4 && 4 * group + i < draws.vocab_size; ++i) {
                if (draws.words) draws.words[4 * group + i] = words.word[i];
                if (draws.weights) draws.weights[4 * group + i] = race_weight(words.word[i]);
            }
        }
    });
}
