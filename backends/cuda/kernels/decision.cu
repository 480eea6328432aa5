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
// where that is committed, the row has failed.
#include "draws.cuh"

// What the kernels tell each other.
struct Site {  // of one slot
    Law law;
    Word lead;    // of the race, see `as_lead`
    float limit;  // a product below it loses the race
    int accepted;
};

struct RowState {
    int refusal;  // the first refused slot
    int closed;   // the first slot of which no law can be made: there the row's drafts end
};

struct Scratch {
    Site* site;    // rows * width
    Chunk* chunk;  // rows * width * chunks
    RowState* row;

    __device__ Scratch(const Decision& decision, long long rows, int chunks) {
        const long long sites = rows * decision.width;
        site = static_cast<Site*>(decision.scratch);
        chunk = reinterpret_cast<Chunk*>(site + sites);
        row = reinterpret_cast<RowState*>(chunk + sites * chunks);
    }
};

// Where a block works.
struct Place {
    int slot, part, parts, batch_row, size, chunks;
    long long index;
    Site* site;
    Chunk* chunk;
    RowState* row;

    __device__ Place(const Decision& decision, int parts) : parts(parts) {
        slot = int(blockIdx.x) / parts;
        part = int(blockIdx.x) % parts;
        batch_row = int(blockIdx.y);
        size = int(decision.vocab_size);
        chunks = (size + CHUNK - 1) / CHUNK;
        index = batch_row * decision.width + slot;
        const Scratch scratch(decision, gridDim.y, chunks);
        site = scratch.site + index;
        chunk = scratch.chunk + index * chunks;
        row = scratch.row + batch_row;
    }
    __device__ int begin(int chunk) const { return chunk * CHUNK; }
    __device__ int end(int chunk) const { return size - begin(chunk) < CHUNK ? size : begin(chunk) + CHUNK; }
};

// How a slot comes to its token: it keeps its draft, it has run a race, or it draws from weights.
enum Way { KEEPS, RACES, FROM_TARGET, FROM_RESIDUAL, WITHOUT_DRAFT };

struct Draw {
    Way way;
    Purpose purpose;

    __device__ Draw(const Decision& decision, const Slot& slots, const Place& place) {
        const int slot = place.slot, refusal = place.row->refusal;
        const bool corrects = slot == refusal || (decision.redraft == MAXIMAL && !place.site->accepted);
        way = KEEPS;
        purpose = corrects ? RESIDUAL : REDRAFT;
        if (decision.acceptance != REJECTION) way = RACES;
        else if (corrects) way = slots.is_recycled(slot) ? FROM_RESIDUAL : slots.has_draft(slot) ? WITHOUT_DRAFT : FROM_TARGET;
        else if (slot > refusal && decision.redraft == INDEPENDENT) way = FROM_TARGET;
        else if (slot > refusal && decision.redraft == GUMBEL) way = RACES;
    }
    // The weight of a token with these probabilities.
    __device__ float weight(float target, float proposed, bool is_draft) const {
        if (way == WITHOUT_DRAFT) return is_draft ? 0 : target;
        return target > proposed ? target - proposed : 0;  // nothing is proposed but FROM_RESIDUAL
    }
};

__device__ inline const float* draft_law(const Decision& decision, const Row& row, int slot) {
    return row.draft_laws + (slot + row.draft_laws_ahead) * decision.vocab_size;
}

__device__ inline int draft_of(const Decision& decision, const Slot& slots, const Place& place) {
    return slots.has_draft(place.slot) ? int(decision.tokens_in[place.index + 1]) : -1;
}

extern "C" __global__ void __launch_bounds__(PART_THREADS, PART_BLOCKS) measure(const Decision decision) {
    __shared__ Block<PART_THREADS> shared;
    const Place place(decision, int(decision.parts));
    const Row& row = decision.rows[place.batch_row];
    const Slot slots(row);
    each([&](int thread) {
        if (thread || place.part) return;
        place.site->lead = 0;
        if (place.slot == 0) *place.row = {slots.end - 1, slots.end};  // the last slot has no draft
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

// A product that some token reaches: that of the draft, which often wins again, or of the likeliest token.
__device__ inline float race_limit(const Law& law, const Logits& logits, const Row& row, int slot, int draft) {
    float best = 0;
    for (int turn = 0; turn < 2; ++turn) {
        const int token = turn ? draft : law.highest.index;
        if (token < 0) continue;
        const Words words = race_words(row.seed, row.sequence, row.start + slot + 1, token / 4);
        const int i = token % 4;
        const Word word = i == 0 ? words.word[0] : i == 1 ? words.word[1] : i == 2 ? words.word[2] : words.word[3];
        const float product = law.probability(logits, token) * nearly_race_weight(word);
        if (product > best) best = product;
    }
    return best * (1 - BAND);
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
        place.site->accepted = 0;
        if (!law.usable()) {
            atomicMin(&place.row->closed, slot);
            atomicMin(&place.row->refusal, slot);
            return;
        }
        const int draft = draft_of(decision, slots, place);
        if (decision.acceptance != REJECTION || decision.redraft == GUMBEL) {
            place.site->limit = race_limit(law, logits, row, slot, draft);
        }
        if (draft < 0 || decision.acceptance != REJECTION) return;
        const double target = law.probability(logits, draft);
        const double proposed = slots.is_recycled(slot) ? draft_law(decision, row, slot)[draft] : 1.0f;
        const double ratio = target > 0 ? (proposed > target ? target / proposed : 1) : 0;
        const double uniform = uniform_at(row.seed, row.sequence, row.start + slot + 1, row.round, ACCEPT);
        place.site->accepted = uniform < ratio;
        if (!place.site->accepted) atomicMin(&place.row->refusal, slot);
    });
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
                const Words words = race_words(row.seed, row.sequence, row.start + place.slot + 1, token / 4);
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

extern "C" __global__ void __launch_bounds__(PART_THREADS, PART_BLOCKS) target_laws(const Decision decision) {
    __shared__ Block<PART_THREADS> shared;
    const Place place(decision, int(decision.parts));
    const Row& row = decision.rows[place.batch_row];
    const Slot slots(row);
    if (!slots.decides(place.slot) || place.slot >= place.row->closed) return;
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
