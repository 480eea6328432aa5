// Where the blocks of a step work, what its kernels tell each other, and how a slot comes to its token.
#pragma once

#include "draws.cuh"

// What the kernels tell each other.
struct Site {  // of one slot
    Law law;
    Word lead;    // of the race, see `as_lead`
    float limit;  // a product below it loses the race
    bool accepted;
    bool corrected;  // whether its law is that of corrected logits
    int decider;     // with branches, of the position `start` + the slot's number + 1: the slot whose law its token is drawn from
};

struct RowState {
    int refusal;  // the first refused slot
    int closed;   // the first slot of which no law can be made: there the row's drafts end; with branches, the first position
    int reach;    // with branches, the last position whose decider was reached from the walk; behind it each is the path's own
    int end;      // with branches, one past the last position that has a token
};

struct Scratch {
    Site* site;    // rows * width
    Chunk* chunk;  // rows * width * chunks
    RowState* row;
    float* corrected;  // with corrections, of a row: the logits of a slot, or of all where candidates are wanted; what moves them

    __device__ Scratch(const Decision& decision, long long rows, int chunks) {
        const long long sites = rows * decision.width;
        site = static_cast<Site*>(decision.scratch);
        chunk = reinterpret_cast<Chunk*>(site + sites);
        row = reinterpret_cast<RowState*>(chunk + sites * chunks);
        corrected = reinterpret_cast<float*>((Word(row + rows) + 15) / 16 * 16);
    }
};

__device__ inline long long in_fours(long long count) { return (count + 3) / 4 * 4; }

// Where a block works.
struct Place {
    int slot, part, parts, batch_row, size, chunks;
    long long index;
    Site* site;
    Chunk* chunk;
    RowState* row;
    float *corrected, *moved;
    long long position;  // which the slot decides

    __device__ Place(const Decision& decision, int parts)
        : Place(decision, int(blockIdx.x) / parts, int(blockIdx.x) % parts, parts) {}
    __device__ Place(const Decision& decision, int slot, int part, int parts) : slot(slot), part(part), parts(parts) {
        batch_row = int(blockIdx.y);
        size = int(decision.vocab_size);
        chunks = (size + CHUNK - 1) / CHUNK;
        index = batch_row * decision.width + slot;
        const Scratch scratch(decision, gridDim.y, chunks);
        site = scratch.site + index;
        chunk = scratch.chunk + index * chunks;
        row = scratch.row + batch_row;
        const long long kept = decision.candidates ? decision.width : 1;  // slots of a row whose corrected logits are kept
        corrected = scratch.corrected + batch_row * (kept * in_fours(size) + in_fours(decision.rank));
        moved = corrected + kept * in_fours(size);
        if (decision.candidates) corrected += slot * in_fours(size);
        position = decision.rows[batch_row].start + (decision.depth ? decision.depth[index] : slot) + 1;
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

// Whether the slot runs a race. In a tree any may be come to behind a slot without a law that stands beside it.
__device__ inline bool is_open(const Decision& decision, int slot, const Site* sites, const RowState& row) {
    return decision.parents ? sites[slot].law.usable() : slot < row.closed;
}

// The token that the slot draws by its race; -1 where none was run.
__device__ inline int raced(const Decision& decision, int slot, const Site* sites, const RowState& row) {
    return is_open(decision, slot, sites, row) ? leading_token(sites[slot].lead) : -1;
}
