// Redrafts under changed neighbours: the sweep of `coupled_sampling.step_rule` with a `coupled_sampling.corrections.LowRank`.
//
// A redraft's law was made with the drafts that stood to its left, and some of them have been redrawn. Where a neighbour is
// another token now, the slot's logits l become
//
//     l' = A l + B u + U (sum over changed neighbours k of w_k[token of now] - w_k[draft])
//
// and all is done again with them: the law and its thresholds, the test of the draft, the race or the draw, with the same noise.
// The new law takes the place of the old one. What is redrawn is a neighbour itself, so slots go from left to right, and a row
// has one block, whose threads share the vocabulary: grid (1, rows), THREADS threads. It comes after `decide`, or after `walk`: then
// positions have their laws from the slots that `walk` chose, and among their neighbours are tokens of branches. A neighbour before the first slot that
// decides cannot change.
#include "slot_draws.cuh"

// The tables of a correction, in this order in memory: `packed` in correction_tables.py.
struct Corrections {
    int rank, size;
    const long long* lags;       // (neighbours,)
    const float* stale_scale;    // (2^neighbours,) A, by which neighbours have changed: neighbour k is bit k
    const float* unigram_scale;  // the same for B
    const float* unigram;        // (V,) u
    const float* basis;          // (rank, V) U, turned so that threads side by side read tokens side by side
    const float* neighbour;      // (neighbours, V, rank) w
    int neighbours;

    __device__ explicit Corrections(const Decision& decision)
        : rank(int(decision.rank)), size(int(decision.vocab_size)), neighbours(int(decision.neighbours)) {
        lags = static_cast<const long long*>(decision.corrections);
        stale_scale = reinterpret_cast<const float*>(lags + neighbours);
        unigram_scale = stale_scale + (1 << neighbours);
        unigram = unigram_scale + (1 << neighbours);
        basis = unigram + size;
        neighbour = basis + (long long)(rank) * size;
    }
    __device__ const float* of(int k, long long token) const { return neighbour + ((long long)(k) * size + token) * rank; }
};

// The tokens of now to the left of a position, and those that its law was made with, both by position less `start` + 1.
struct Left {
    int position, first;
    const long long *window, *tokens;
    const Site* followed;  // with branches, up to the row's reach: a law was made with what stands on the path of its slot

    __device__ Left(const Decision& decision, const Slot& slots, const Place& row, int position)
        : position(position), first(slots.first), window(decision.tokens_in + row.index), tokens(decision.tokens + row.index),
          followed(decision.parents && position <= row.row->reach ? row.site : nullptr) {}
    // A slot decides the token that the next one on its path holds.
    __device__ long long draft(int at) const { return window[followed ? followed[at + 1].decider : at + 1]; }
    __device__ bool has_changed(long long lag) const {
        const int at = int(position - lag);
        return at >= first && tokens[at] != draft(at);
    }
    // Which neighbours are other tokens now, as bits.
    __device__ unsigned int changed(const Corrections& corrections) const {
        unsigned int found = 0;
        for (int k = 0; k < corrections.neighbours; ++k) {
            if (has_changed(corrections.lags[k])) found |= 1u << k;
        }
        return found;
    }
};

// The slot's logits under its changed neighbours, to the memory for them.
__device__ inline void correct(
    const Corrections& corrections, const Left& left, unsigned int changed, const Logits& logits, const Place& place
) {
    const int rank = corrections.rank, size = corrections.size;
    float *const corrected = place.corrected, *const moved = place.moved;
    each([&](int thread) {
        for (int i = thread; i < rank; i += THREADS) {
            float sum = 0;
            for (int k = 0; k < corrections.neighbours; ++k) {
                if (!(changed >> k & 1)) continue;
                const int at = int(left.position - corrections.lags[k]);
                sum += corrections.of(k, left.tokens[at])[i] - corrections.of(k, left.draft(at))[i];
            }
            moved[i] = sum;
        }
    });
    const float stale = corrections.stale_scale[changed], own = corrections.unigram_scale[changed];
    each([&](int thread) {
        for (int token = thread; token < size; token += THREADS) {
            float predicted = 0;
            for (int i = 0; i < rank; ++i) predicted += corrections.basis[(long long)(i) * size + token] * moved[i];
            corrected[token] = stale * logits.at(token) + own * corrections.unigram[token] + predicted;
        }
    });
}

// The law of corrected logits, as `measure` and `settle` make laws, by one block.
__device__ inline Law law_of(
    Block<THREADS>& shared, Histogram& histogram, const Row& row, const Place& place, const Logits& logits
) {
    for (int i = 0; i < place.chunks; ++i) {
        const Chunk found = measured(shared, logits, place.begin(i), place.end(i), float(row.temperature));
        each([&](int thread) {
            if (thread == 0) place.chunk[i] = found;
        });
    }
    Law law = combined(shared, place.chunk, place.chunks, float(row.temperature));
    if (law.usable() && is_warped(row, place.size)) narrow(shared, histogram, law, logits, row, place.size);
    return law;
}

// A slot's token under `law`, which takes the place of the law that it had.
__device__ inline int redrawn(
    Block<THREADS>& shared, const Decision& decision, const Row& row, const Slot& slots, const Place& place,
    const Logits& logits, const Law& law
) {
    const int slot = place.slot, draft = draft_of(decision, slots, place);
    each([&](int thread) {
        if (thread) return;
        place.site->corrected = true;
        place.site->law = law;
        place.site->lead = 0;
        place.site->limit = race_limit(law, logits, row, place.position, draft);
        const bool tests = draft >= 0 && decision.acceptance == REJECTION;
        place.site->accepted = tests && is_accepted(law, logits, decision, row, slots, slot, draft);
    });
    const Draw draw(decision, slots, place);
    if (draw.way == RACES) {
        race_laws(shared, decision, row, place, logits);
        return leading_token(place.site->lead);
    }
    for (int i = 0; i < place.chunks; ++i) sum_laws(shared, decision, row, place, logits, draw, draft, i);
    return draw.way == KEEPS ? draft : drawn(shared, decision, row, place, draw, draft);
}

extern "C" __global__ void __launch_bounds__(THREADS) sweep(const Decision decision) {
    __shared__ Block<THREADS> shared;
    __shared__ Histogram histogram;
    const Row& row = decision.rows[blockIdx.y];
    if (!row.draws) return;
    const Slot slots(row);
    const Corrections corrections(decision);
    const Place whole(decision, 0, 0, 1);
    const int redrafts = slots.first + int(decision.committed[blockIdx.y]), closed = whole.row->closed;
    for (int position = redrafts; position < closed; ++position) {
        const int slot = decision.parents ? whole.site[position].decider : position;
        const Place place(decision, slot, 0, 1);
        const Left left(decision, slots, whole, position);
        const unsigned int changed = left.changed(corrections);
        if (!changed) continue;
        const Logits stale(decision, row, place.batch_row, slot);
        correct(corrections, left, changed, stale, place);
        const Logits logits(place.corrected);
        const Law law = law_of(shared, histogram, row, place, logits);
        long long* const tokens = decision.tokens + whole.index;
        if (!law.usable()) {  // the row's drafts end
            each([&](int thread) {
                for (int i = position + thread; i < closed; i += THREADS) tokens[i] = -1;
            });
            return;
        }
        const int token = redrawn(shared, decision, row, slots, place, logits, law);
        each([&](int thread) {
            if (thread == 0) tokens[position] = token;
        });
    }
}
