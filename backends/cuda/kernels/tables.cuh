// What the host hands to the kernels. `Row` and `Decision` are mirrored by the NumPy types of the same names in kernels.py.
#pragma once

typedef unsigned long long Word;

struct Row {
    long long start, known, recycled, fresh, draws, round;
    Word seed, sequence;
    const float* draft_laws;  // laws of the round before; the one of slot j lies at (j + draft_laws_ahead) * V
    long long draft_laws_ahead;
    float* laws;  // of this round, slot j at j * V
    double temperature, top_p, min_p;
    long long top_k;  // 0 keeps all
    double guidance;
    long long guidance_lag;
    long long branches;  // slots behind the fresh drafts that are drafts of branches
};

struct Decision {
    const void* logits;
    long long logits_type;  // 0 float32, 1 float16, 2 bfloat16
    long long guided;       // rows 2b are conditional, 2b + 1 unconditional
    long long width, vocab_size;
    const Row* rows;
    const long long* tokens_in;
    long long redraft;     // 0 none, 1 independent, 2 maximal, 3 gumbel
    long long acceptance;  // 0 none, 1 rejection, 2 match
    long long* tokens;
    long long* committed;
    float* highest_logits;
    void* scratch;               // `Scratch` in places.cuh
    long long parts;             // blocks that share a slot
    const void* corrections;     // `Corrections` in sweep.cu; 0 for none
    long long neighbours, rank;  // of these
    const long long* parents;    // int64 (B, W), see `coupled_sampling.trees`; 0 where each slot follows the one before it
    const long long* depth;      // int64 (B, W): slots before each on its path; 0 with `parents`
    long long candidates;        // how many are wanted of each redraft, at most V
    long long* candidate_tokens;  // int64 (B, W, candidates), written where a redraft stands
    float* candidate_scores;      // the same shape
};

enum Redraft { NO_REDRAFT = 0, INDEPENDENT = 1, MAXIMAL = 2, GUMBEL = 3 };
enum Acceptance { NO_ACCEPTANCE = 0, REJECTION = 1, MATCH = 2 };

// Which slots decide something and which of them test a draft: `Window.decisions`. Behind those of the path, which follow one
// another, stand those of branches.
struct Slot {
    int first, drafts_end, end;  // of the row: the first deciding slot, one past the last draft's slot, one past the path's last
    int recycled_end, branches_end;

    __device__ explicit Slot(const Row& row) {
        first = int(row.known) - 1;
        end = row.draws ? int(row.known + row.recycled + row.fresh) : first;
        drafts_end = end - 1;
        recycled_end = int(first + row.recycled);
        branches_end = row.draws ? end + int(row.branches) : first;
    }
    __device__ bool decides(int slot) const { return slot >= first && slot < branches_end; }
    __device__ bool has_draft(int slot) const { return slot >= first && slot < drafts_end; }
    __device__ bool is_recycled(int slot) const { return has_draft(slot) && slot < recycled_end; }
};
