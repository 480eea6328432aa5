// Windows that are trees, and what else redrafts might have been: `coupled_sampling.step_rule.decide_tree`, and the candidates of
// `coupled_sampling.HostStep`.
//
// - `walk` takes the place of `decide`: which drafts stand, where the longest path of those ends, tokens by position;
// - `rank` comes last, where candidates are wanted: of each redraft's race the best tokens, and what they came to.
//
// Every slot has run its race when they begin, with the noise of the position that it decides.
#include "slot_draws.cuh"

// How far a slot has looked up its path: the slot to look at next, -1 at the top, and whether all that it has seen stand.
struct Lineage {
    int above;
    bool stands;
};

// What a slot knows of itself. The parent of a draft is the slot of the last known token, or another draft.
__device__ inline Lineage lineage(
    const Decision& decision, const Slot& slots, const Site* sites, const RowState& state, long long begin, int slot
) {
    if (slot == slots.first) return {-1, true};
    if (!slots.decides(slot)) return {-1, false};
    const int parent = int(decision.parents[begin + slot]);
    if (parent < slots.first) return {-1, false};
    return {parent, raced(slots, parent, sites, state) == decision.tokens_in[begin + slot]};
}

// The end of the longest path of drafts that stand, the first of equal ones: by pointer jumping, so that a path of n slots is
// looked up in log2(n) turns. What measured chunks held is not needed any more, and makes room for two turns.
__device__ inline int longest(
    Block<THREADS>& shared, const Decision& decision, const Slot& slots, const Place& place
) {
    const int width = int(decision.width);
    Lineage *from = reinterpret_cast<Lineage*>(place.chunk), *to = from + width;
    each([&](int thread) {
        for (int slot = thread; slot < width; slot += THREADS) {
            from[slot] = lineage(decision, slots, place.site, *place.row, place.index, slot);
        }
    });
    for (int seen = 1; seen < width; seen *= 2) {
        each([&](int thread) {
            for (int slot = thread; slot < width; slot += THREADS) {
                const Lineage own = from[slot];
                if (own.above < 0) to[slot] = own;
                else to[slot] = {from[own.above].above, own.stands && from[own.above].stands};
            }
        });
        Lineage* const filled = to;
        to = from;
        from = filled;
    }
    each([&](int thread) {
        Scored best = {-1, width};
        for (int slot = thread; slot < width; slot += THREADS) {
            const Scored other = {float(decision.depth[place.index + slot]), slot};
            if (from[slot].stands && beats(other, best)) best = other;
        }
        shared.best[thread] = best;
    });
    return best_of_all(shared).index;
}

// One block for a row: grid (1, rows), THREADS threads.
extern "C" __global__ void __launch_bounds__(THREADS) walk(const Decision decision) {
    __shared__ Block<THREADS> shared;
    const Place place(decision, 0, 0, 1);  // of the row's first slot
    const Row& row = decision.rows[place.batch_row];
    const Slot slots(row);
    const int width = int(decision.width), end = row.draws ? longest(shared, decision, slots, place) : 0;
    const int last = row.draws ? int(decision.depth[place.index + end]) : width;
    long long* const tokens = decision.tokens + place.index;
    each([&](int thread) {
        // Redrafts are those of the path. Where one of its slots has no law they end, even if a branch has gone on beside it.
        for (int slot = thread; slot < width; slot += THREADS) {
            if (slot > last && slot < slots.end) tokens[slot] = raced(slots, slot, place.site, *place.row);
            else if (slot > last || slot < slots.first || !row.draws) tokens[slot] = 0;
        }
        if (thread) return;
        decision.committed[place.batch_row] = row.draws ? last - slots.first + 1 : 0;
        if (!row.draws) return;
        // As many turns as tokens are committed, which are few.
        for (int slot = end; slot > slots.first; slot = int(decision.parents[place.index + slot])) {
            tokens[decision.depth[place.index + slot]] = raced(slots, slot, place.site, *place.row);
        }
        tokens[slots.first] = raced(slots, slots.first, place.site, *place.row);
    });
}

// Shared memory of a ranking: of each thread's share of the vocabulary the best token that has not been ranked, see `as_lead`.
struct Shares {
    Word best[THREADS];
    Word searched[THREADS];
    Word folded[2][THREADS / FOLD];
    Word winner, next;
};

__device__ inline Word larger(Word one, Word other) { return other > one ? other : one; }

// The best of a thread's contenders below `bound`, by exact products. Of most a quick approximation shows that they are not it.
struct Search {
    Word bound;
    Word best = 0;
    float least = 0;  // a quick product below it loses

    __device__ explicit Search(Word bound) : bound(bound) {}

    // Tokens `token` to `token + 3`, of which those at `size` and beyond are none.
    __device__ void enter(const Law& law, const Logits& logits, const Row& row, long long position, int token, int size) {
        const Four four = law.probabilities(logits, token, size);
        Words words = {{0, 0, 0, 0}};  // without a probability noise changes nothing
        if (four.value[0] > 0 || four.value[1] > 0 || four.value[2] > 0 || four.value[3] > 0) {
            words = race_words(row.seed, row.sequence, position, token / 4);
        }
        for (int i = 0; i < 4 && token + i < size; ++i) {
            if (four.value[i] * nearly_race_weight(words.word[i]) < least) continue;
            const float product = four.value[i] * race_weight(words.word[i]);
            const Word lead = as_lead({product, token + i});
            if (lead >= bound || lead <= best) continue;
            best = lead;
            if (product > NOTHING) least = product * (1 - BAND);  // an approximation of less may be off by more
        }
    }
};

// The best tokens of a redraft's race, best first, and the logarithms of what they came to; -inf for tokens that cannot be. Each
// thread ranks its share of the tokens, groups of four in turn. Then the best of all shares is taken as often as candidates are
// wanted, and the share that it came from is searched for its next one by all threads. Grid (width, rows), THREADS threads.
extern "C" __global__ void __launch_bounds__(THREADS) rank(const Decision decision) {
    __shared__ Shares shared;
    const Place place(decision, 1);
    const Row& row = decision.rows[place.batch_row];
    const Slot slots(row);
    const bool redrafts = row.draws && place.slot >= slots.first + decision.committed[place.batch_row] && place.slot < slots.end;
    if (!redrafts || decision.tokens[place.index] < 0) return;
    const Logits stale(decision, row, place.batch_row, place.slot);
    const Logits logits = place.site->corrected ? Logits(place.corrected) : stale;
    const Law law = place.site->law;
    each([&](int thread) {
        Search search(~Word(0));
        for (int token = 4 * thread; token < place.size; token += 4 * THREADS) {
            search.enter(law, logits, row, place.position, token, place.size);
        }
        shared.best[thread] = search.best;
    });
    for (int i = 0; i < decision.candidates; ++i) {
        fold<THREADS>(shared.best, shared.folded, shared.winner, larger);
        const Word winner = shared.winner;
        const int token = leading_token(winner), share = token / 4 % THREADS;
        each([&](int thread) {
            Search search(winner);
            for (long long four = 4 * (share + (long long)(thread) * THREADS); four < place.size; four += 4ll * THREADS * THREADS) {
                search.enter(law, logits, row, place.position, int(four), place.size);
            }
            shared.searched[thread] = search.best;
            if (thread) return;
            const float product = from_ordered((unsigned int)(winner >> 32));
            decision.candidate_tokens[place.index * decision.candidates + i] = token;
            decision.candidate_scores[place.index * decision.candidates + i] = product > 0 ? logf(product) : -INFINITY;
        });
        fold<THREADS>(shared.searched, shared.folded, shared.next, larger);
        each([&](int thread) {
            if (thread == 0) shared.best[share] = shared.next;
        });
    }
}
