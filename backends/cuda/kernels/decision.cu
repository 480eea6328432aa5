// A step's decisions from its logits: `coupled_sampling.host_step.HostStep` on the device, in four kernels.
//
// - `measure` reads the logits: of each chunk of a slot the largest one and the sum of exponentials;
// - `settle` combines a slot's chunks to its law, finds the thresholds of top-k and top-p, and tests the draft against the law;
// - `target_laws` reads the logits again: it writes the laws, runs races, and sums what is to be drawn from, chunk by chunk;
// - `decide` corrects each row's first refusal, redrafts what follows, and counts.
//
// `measure` and `target_laws` have `parts` blocks for each slot, which take its chunks in turn: grid (width * parts, rows),
// PART_THREADS threads. The others have one: grid (width, rows), THREADS threads. No outcome depends on `parts`. Slots that
// decide nothing do no work. At the first slot of which no law can be made a row's drafts end: from there on its tokens are -1, and
// where that is committed, the row has failed. Where laws are corrected, the kernel of sweep.cu comes after these. In windows with
// branches the first kernel of tree.cu takes the place of `decide`.
#include "slot_draws.cuh"

extern "C" __global__ void __launch_bounds__(PART_THREADS, PART_BLOCKS) measure(const Decision decision) {
    __shared__ Block<PART_THREADS> shared;
    const Place place(decision, int(decision.parts));
    const Row& row = decision.rows[place.batch_row];
    const Slot slots(row);
    each([&](int thread) {
        if (thread || place.part) return;
        place.site->lead = 0;
        if (place.slot == 0) *place.row = {slots.end - 1, slots.end, slots.end - 1, slots.end};  // the last slot has no draft
    });
    if (!slots.decides(place.slot)) return;
    const Logits logits(decision, row, place.batch_row, place.slot);
    for (int i = place.part; i < place.chunks; i += place.parts) {
        const Chunk found = measured(shared, logits, place.begin(i), place.end(i), float(row.temperature));
        each([&](int thread) {
            if (thread == 0) place.chunk[i] = found;
        });
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) settle(const Decision decision) {
    __shared__ Block<THREADS> shared;
    __shared__ Histogram histogram;
    const Place place(decision, 1);
    const int slot = place.slot;
    const Row& row = decision.rows[place.batch_row];
    const Slot slots(row);
    if (!slots.decides(slot)) {
        each([&](int thread) {
            if (thread == 0) decision.highest_logits[place.index] = 0;
        });
        return;
    }
    const Logits logits(decision, row, place.batch_row, slot);
    Law law = combined(shared, place.chunk, place.chunks, float(row.temperature));
    if (law.usable() && is_warped(row, place.size)) narrow(shared, histogram, law, logits, row, place.size);
    each([&](int thread) {
        if (thread) return;
        decision.highest_logits[place.index] = law.highest.value;
        place.site->law = law;
        place.site->accepted = place.site->corrected = false;
        if (!law.usable()) {
            atomicMin(&place.row->closed, slot);
            atomicMin(&place.row->refusal, slot);
            return;
        }
        const int draft = draft_of(decision, slots, place);
        if (decision.acceptance != REJECTION || decision.redraft == GUMBEL) {
            place.site->limit = race_limit(law, logits, row, place.position, draft);
        }
        if (draft < 0 || decision.acceptance != REJECTION) return;
        place.site->accepted = is_accepted(law, logits, decision, row, slots, slot, draft);
        if (!place.site->accepted) atomicMin(&place.row->refusal, slot);
    });
}

extern "C" __global__ void __launch_bounds__(PART_THREADS, PART_BLOCKS) target_laws(const Decision decision) {
    __shared__ Block<PART_THREADS> shared;
    const Place place(decision, int(decision.parts));
    const Row& row = decision.rows[place.batch_row];
    const Slot slots(row);
    if (!slots.decides(place.slot) || !is_open(decision, place.slot, place.site - place.slot, *place.row)) return;
    const Logits logits(decision, row, place.batch_row, place.slot);
    const Draw draw(decision, slots, place);
    if (draw.way == RACES) {
        race_laws(shared, decision, row, place, logits);
        return;
    }
    const int draft = draft_of(decision, slots, place);
    for (int i = place.part; i < place.chunks; i += place.parts) {
        sum_laws(shared, decision, row, place, logits, draw, draft, i);
    }
}

// The first slot whose draft is not the winner of its race.
__device__ inline int first_mismatch(Block<THREADS>& shared, const Decision& decision, const Slot& slots, const Place& place) {
    const Site* sites = place.site - place.slot;
    const long long* drafts = decision.tokens_in + place.index - place.slot + 1;
    each([&](int thread) {
        Scored best = {0, slots.end};
        for (int i = slots.first + thread; i < slots.end; i += THREADS) {
            // Behind the first slot without a law no race was run.
            const bool accepted =
                slots.has_draft(i) && i < place.row->closed && leading_token(sites[i].lead) == drafts[i];
            const Scored other = {accepted ? 0.0f : 1.0f, i};
            if (beats(other, best)) best = other;
        }
        shared.best[thread] = best;
    });
    return best_of_all(shared).index;
}

extern "C" __global__ void __launch_bounds__(THREADS) decide(const Decision decision) {
    __shared__ Block<THREADS> shared;
    const Place place(decision, 1);
    const Row& row = decision.rows[place.batch_row];
    const Slot slots(row);
    if (!slots.decides(place.slot)) {
        each([&](int thread) {
            if (thread) return;
            decision.tokens[place.index] = 0;
            if (place.slot == 0 && !row.draws) decision.committed[place.batch_row] = 0;
        });
        return;
    }
    const int draft = draft_of(decision, slots, place);
    const Draw draw(decision, slots, place);
    int token = draft < 0 ? 0 : draft;
    if (place.slot >= place.row->closed) token = -1;
    else if (draw.way == RACES) token = leading_token(place.site->lead);
    else if (draw.way != KEEPS) token = drawn(shared, decision, row, place, draw, draft);
    const bool tests = decision.acceptance == REJECTION;
    const int refusal = tests ? place.row->refusal : first_mismatch(shared, decision, slots, place);
    each([&](int thread) {
        if (thread) return;
        decision.tokens[place.index] = token;
        if (place.slot == slots.first) decision.committed[place.batch_row] = refusal - slots.first + 1;
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

struct WindowDraws {
    const Row* rows;
    long long width, vocab_size;
    float* weights;  // float32 (rows, W, V)
};

// The race weights of every slot that decides something, those of `noise` for its position. Grid (width * n, rows), n blocks for
// a slot, any number. The rows are read when the kernel runs, so that a captured launch serves every step.
extern "C" __global__ void __launch_bounds__(THREADS) window_noise(const WindowDraws draws) {
    const int parts = int(gridDim.x / draws.width), slot = int(blockIdx.x) / parts, part = int(blockIdx.x) % parts;
    const Row& row = draws.rows[blockIdx.y];
    if (!Slot(row).decides(slot)) return;
    float* weights = draws.weights + (blockIdx.y * draws.width + slot) * draws.vocab_size;
    each([&](int thread) {
        for (long long group = part * THREADS + thread; 4 * group < draws.vocab_size; group += parts * THREADS) {
            const Words words = race_words(row.seed, row.sequence, row.start + slot + 1, int(group));
            for (int i = 0; i < 4 && 4 * group + i < draws.vocab_size; ++i) {
                weights[4 * group + i] = race_weight(words.word[i]);
            }
        }
    });
}
