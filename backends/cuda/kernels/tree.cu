// Windows that are trees, and what else redrafts might have been: `coupled_sampling.step_rule.decide_tree`, and the candidates of
// `coupled_sampling.HostStep`.
//
// - `walk` takes the place of `decide`: which drafts stand, where the longest path of those ends, which slots' laws the redrafts
//   behind it are drawn from, tokens by position;
// - `rank` comes last, where candidates are wanted: of each redraft's race the best tokens, and what they came to.
//
// Every slot has run its race when they begin, with the noise of the position that it decides.
#include "slot_draws.cuh"

// How far a slot has looked up its path: the slot to look at next, -1 at the top, and whether all that it has seen stand.
struct Lineage {
    int above;
    bool stands;
};

// What a slot of a row, whose place is that of its first slot, knows of itself. The parent of a draft is the slot of the last known token, or another draft.
__device__ inline Lineage lineage(
    const Decision& decision, const Slot& slots, const Place& place, int slot
) {
    if (slot == slots.first) return {-1, true};
    if (!slots.decides(slot)) return {-1, false};
    const int parent = int(decision.parents[place.index + slot]);
    if (parent < slots.first) return {-1, false};
    return {parent, raced(decision, parent, place.site, *place.row) == decision.tokens_in[place.index + slot]};
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
            from[slot] = lineage(decision, slots, place, slot);
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

// The slot whose law each position's token is drawn from: of the walk to `end`, then of its first child, the first child of that,
// and so on; behind the last of these, at `reach`, each position has the path's own slot.
__device__ inline void follow(const Decision& decision, const Slot& slots, const Place& place, int end) {
    const int width = int(decision.width);
    const long long *parents = decision.parents + place.index, *depth = decision.depth + place.index;
    int* const child = reinterpret_cast<int*>(place.chunk);  // the first of each slot's; the width where there is none
    each([&](int thread) {
        for (int slot = thread; slot < width; slot += THREADS) {
            child[slot] = width;
            place.site[slot].decider = slot;
        }
    });
    each([&](int thread) {
        for (int slot = thread; slot < width; slot += THREADS) {
            if (slots.decides(slot) && parents[slot] >= slots.first) atomicMin(&child[parents[slot]], slot);
        }
    });
    each([&](int thread) {
        if (thread) return;
        // As many turns as tokens are committed and branches are followed, which are few.
        for (int slot = end; slot > slots.first; slot = int(parents[slot])) place.site[depth[slot]].decider = slot;
        place.site[slots.first].decider = slots.first;
        int tip = end < slots.end ? slots.end - 1 : end;  // on the path each slot's first child is the next one
        for (; child[tip] < width; tip = child[tip]) place.site[depth[child[tip]]].decider = child[tip];
        const int reach = int(depth[tip]);
        place.row->reach = reach;
        place.row->closed = place.row->end = reach < slots.end ? slots.end : reach + 1;
    });
}

// One block for a row: grid (1, rows), THREADS threads.
extern "C" __global__ void __launch_bounds__(THREADS) walk(const Decision decision) {
    __shared__ Block<THREADS> shared;
    const Place place(decision, 0, 0, 1);  // of the row's first slot
    const Row& row = decision.rows[place.batch_row];
    const Slot slots(row);
    const int width = int(decision.width);
    long long* const tokens = decision.tokens + place.index;
    if (!row.draws) {
        each([&](int thread) {
            for (int position = thread; position < width; position += THREADS) tokens[position] = 0;
            if (thread == 0) decision.committed[place.batch_row] = 0;
        });
        return;
    }
    const int end = longest(shared, decision, slots, place), last = int(decision.depth[place.index + end]);
    follow(decision, slots, place, end);
    each([&](int thread) {
        for (int position = thread; position < width; position += THREADS) {
            const bool decided = position >= slots.first && position < place.row->end;
            const int token = decided ? raced(decision, place.site[position].decider, place.site, *place.row) : 0;
            tokens[position] = token;
            if (position >= last && token < 0) atomicMin(&place.row->closed, position);
        }
        if (thread == 0) decision.committed[place.batch_row] = last - slots.first + 1;
    });
    each([&](int thread) {
        for (int position = thread; position < place.row->end; position += THREADS) {
            if (position >= place.row->closed) tokens[position] = -1;
        }
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
    const Place here(decision, 1);  // the number of its slot is that of the position
    const Row& row = decision.rows[here.batch_row];
    const Slot slots(row);
    const bool redrafts = row.draws && here.slot >= slots.first + decision.committed[here.batch_row] && here.slot < slots.end;
    if (!redrafts || decision.tokens[here.index] < 0) return;
    const Place place(decision, decision.parents ? here.site->decider : here.slot, 0, 1);
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
            decision.candidate_tokens[here.index * decision.candidates + i] = token;
            decision.candidate_scores[here.index * decision.candidates + i] = product > 0 ? logf(product) : -INFINITY;
        });
        fold<THREADS>(shared.searched, shared.folded, shared.next, larger);
        each([&](int thread) {
            if (thread == 0) shared.best[share] = shared.next;
        });
    }
}
