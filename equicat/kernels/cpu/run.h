// A call of a kernel: its sizes checked, its centres shared among threads, and the tape between its two passes.
#pragma once

#include "edges.h"
#include "threads.h"

// Throws for sizes that no network has, before anything is computed with them.
inline void check(const Call& call) {
    require(call.l_max >= 0 && call.l_max <= MAX_DEGREE, "the degree of harmonics is not supported");
    require(call.channels > 0 && call.channels < 1 << 24 && call.channels % BLOCK == 0,
            "the number of channels is not a multiple of a block, below 2^24");
    require(call.n_plain >= 3 && call.n_matrices > 0, "weights are missing");
    for (int k = 0; k < call.n_matrices; k++)
        require(call.matrices[k].k >= 0 && call.matrices[k].k < INT32_MAX && call.matrices[k].n < INT32_MAX &&
                    call.matrices[k].n % BLOCK == 0, "a matrix has a size that is not supported");
    check_edges(call.first_edge, call.n_centers);
}

// Computes all centres. Each thread takes consecutive centres with about as many edges: the same sums, in the same
// order, every time.
//
// A Worker is an EdgeTile with three methods, called for each group: begin(start, stop) embeds the rows of centres
// [start, stop); tile(start, stop) goes forward and backward through a tile of it; end() takes derivatives back from
// rows to the weights of the embedding.
template <class Worker, class Network> void run(const Call& call, const Network& network) {
    check(call);
    const int64_t *first = call.first_edge, n_edges = first[call.n_centers];
    const Weights weights(call);
    int n_threads = std::max<int64_t>(1, std::min<int64_t>(call.n_threads, n_edges / weights.tile_edges()));
    // Small products take no longer than it takes to remember them.
    Tape* tape = weights.large ? call.tape : nullptr;
    if (tape && !tape->reels.empty()) n_threads = tape->reels.size();  // as in the pass that wrote them
    if (tape) tape->reels.resize(n_threads);
    std::vector<Worker> workers(n_threads, Worker(call, weights, network));
    for (int t = 0; tape && t < n_threads; t++) workers[t].attach(&tape->reels[t]);
    // f(start, end) for runs of at least that many edges, of centres in [start, stop).
    const auto in_runs = [&](int start, int stop, int n_edges, auto f) {
        for (int end; start < stop; start = end) {
            for (end = start + 1; end < stop && first[end] - first[start] < n_edges;) end++;
            f(start, end);
        }
    };
    const auto work = [&](int t) {
        const int64_t begin = part_start(first, call.n_centers, t, n_threads);
        const int64_t end = part_start(first, call.n_centers, t + 1, n_threads);
        in_runs(begin, end, weights.group_edges(), [&](int start, int stop) {
            workers[t].begin(start, stop);
            in_runs(start, stop, weights.tile_edges(), [&](int from, int to) { workers[t].tile(from, to); });
            workers[t].end();
        });
    };
    in_threads(n_threads, work);
    for (const Worker& worker : workers) worker.add_gradients();
}

extern "C" {
struct Handle {
    Tape* tape;
};
inline __attribute__((used)) int new_tape(Handle* handle, char* message) {
    return guarded(message, [&] { handle->tape = new Tape; });
}
inline __attribute__((used)) int delete_tape(Handle* handle, char* message) {
    return guarded(message, [&] { delete handle->tape; });
}
}
