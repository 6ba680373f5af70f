// Energies of atoms and their gradient for Allegro; names as in equicat/networks/allegro_parts.py.
//
// Here is what both flavours share: a call is checked, its centres are shared among threads, and each thread goes
// forward and backward through the layers, tile by tile. The compiler is told the FLAVOUR: Published or Nequip.
#include <deque>

#include "nequip.h"
#include "published.h"
#include "threads.h"

namespace {

// Throws for sizes that no network has, before anything is computed with them.
void check(const Call& call) {
    require(call.l_max >= 0 && call.l_max <= MAX_DEGREE, "the degree of harmonics is not supported");
    require(call.channels > 0 && call.channels < 1 << 24 && call.channels % BLOCK == 0,
            "the number of channels is not a multiple of a block, below 2^24");
    require(call.n_plain >= 3 && call.n_matrices > 0, "weights are missing");
    for (int k = 0; k < call.n_matrices; k++)
        require(call.matrices[k].k >= 0 && call.matrices[k].k < INT32_MAX && call.matrices[k].n < INT32_MAX &&
                    call.matrices[k].n % BLOCK == 0, "a matrix has a size that is not supported");
    check_edges(call.first_edge, call.n_centers);
}

template <class Flavour, int D> class Worker : public Flavour {
    using Flavour::call, Flavour::dims, Flavour::channels, Flavour::n_centers, Flavour::plain_grads;
    using Flavour::array, Flavour::at, Flavour::add_at;
    using Flavour::n_layers, Flavour::layer, Flavour::env_weights, Flavour::env_weights_bar, Flavour::head;
    using Flavour::rows, Flavour::rows_bar;

    std::vector<Array> envs;
    typename Flavour::Hidden readout;

  public:
    using Flavour::Flavour;

    // Embeds the rows of centres [start, stop), a group.
    void begin(int start, int stop) {
        if (!this->begin_group(start, stop)) return;
        rows.clear(), rows_bar.clear();
        this->embed();
        for (const Array& x : rows) rows_bar.push_back(this->rows_bar_of(x));
        this->end_rows();
    }

    // Goes forward and backward through a tile of the group.
    void tile(int start, int stop) {
        if (!this->begin_tile(start, stop)) return;
        forward();
        backward();
        this->geometry_backward();
    }

    // Takes derivatives back from rows to the weights of the embedding.
    void end() {
        if (this->end_tiles()) this->embedded_backward(this->embed_backward());
    }

  private:
    void forward() {
        std::vector<Array> edges;
        for (const Array& x : rows) edges.push_back(this->to_edges(x));
        envs.assign(n_layers, Array{}), env_weights.assign(n_layers, Array{});
        env_weights[0] = edges[0];
        this->begin_layers(edges);
        for (int k = 0; k < n_layers; k++) {
            envs[k] = this->environment(env_weights[k]);
            this->products(k, contracted(k));
        }
        this->energies(this->hidden_layers(this->features(), head, readout));
    }

    // Adds to geometry_bar, and to the derivatives by arrays of rows.
    void backward() {
        env_weights_bar.assign(n_layers + 1, Array{});
        const Array bar = this->energies_backward(readout.h.back());
        this->features_backward(this->hidden_layers_backward(bar, head, readout));
        for (int k = n_layers - 1; k >= 0; k--) {
            const Array env_bar = contracted_backward(k, this->products_backward(k));
            this->environment_backward(env_weights[k], env_bar, env_weights_bar[k]);
        }
        const std::vector<Array> edges_bar = this->end_layers();
        for (size_t i = 0; i < rows.size(); i++) this->add_to_rows(rows_bar[i], edges_bar[i]);
    }

    // f(row of M, component of the environment, coefficient, weights of the path) for all terms of layer k; a flavour
    // whose paths have no weights gets those of path 0.
    template <class F> void for_terms(int k, F f) const {
        for (int t = 0; t < layer(k).n_terms; t++) {
            const int64_t* term = layer(k).terms + 3 * t;
            f(int(term[0]), int(term[1]), Vector{} + layer(k).coefficients[t], term[2] * channels);
        }
    }

    // M[row, u] = Σ_t coefficient_t A[b_t, u] of every centre, each term times the weight of its path if it has one.
    Array contracted(int k) {
        const Array m = array(n_centers * layer(k).n_rows, channels, true);
        for (int c = 0; c < n_centers; c++)
            for_terms(k, [&](int row, int b, Vector factor, long path) {
                for (int u = 0; u < channels; u += LANES) {
                    Vector w = factor;
                    if constexpr (Flavour::PATH_WEIGHTS) w *= load(call.plain[k].data + path + u);
                    add_at(m, c * layer(k).n_rows + row, u, at(envs[k], c * dims + b, u) * w);
                }
            });
        return m;
    }

    Array contracted_backward(int k, const Array& m_bar) {
        const Array env_bar = array(n_centers * dims, channels, true);
        for (int c = 0; c < n_centers; c++)
            for_terms(k, [&](int row, int b, Vector factor, long path) {
                for (int u = 0; u < channels; u += LANES) {
                    const Num<D> bar = at(m_bar, c * layer(k).n_rows + row, u);
                    Vector w = factor;
                    if constexpr (Flavour::PATH_WEIGHTS) w *= load(call.plain[k].data + path + u);
                    add_at(env_bar, c * dims + b, u, bar * w);
                    if constexpr (Flavour::PATH_WEIGHTS && D == 2) {
                        real* grad = plain_grads[k].data() + path + u;
                        store(grad, load(grad) + (at(envs[k], c * dims + b, u) * bar).v[1] * factor);
                    }
                }
            });
        return env_bar;
    }
};

// Computes all centres. Each thread takes consecutive centres with about as many edges: the same sums, in the same
// order, every time.
template <class Worker> void run(const Call& call) {
    check(call);
    const int64_t *first = call.first_edge, n_edges = first[call.n_centers];
    const Weights weights(call);
    int n_threads = std::max<int64_t>(1, std::min<int64_t>(call.n_threads, n_edges / weights.tile_edges));
    // Small products take no longer than it takes to remember them.
    Tape* tape = weights.large ? call.tape : nullptr;
    if (tape && !tape->reels.empty()) n_threads = tape->reels.size();  // as in the pass that wrote them
    if (tape) tape->reels.resize(n_threads);
    std::deque<Worker> workers;  // which have memory of their own, and so are neither copied nor moved
    for (int t = 0; t < n_threads; t++) {
        workers.emplace_back(call, weights);
        if (tape) workers[t].attach(&tape->reels[t]);
    }
    // f(start, end) for runs of at least that many edges, of centres in [start, stop).
    const auto in_runs = [&](int start, int stop, int n_edges, auto f) {
        for (int end; start < stop; start = end) {
            for (end = start + 1; end < stop && first[end] - first[start] < n_edges;) end++;
            f(start, end);
        }
    };
    in_threads(n_threads, [&](int t) {
        const int64_t begin = part_start(first, call.n_centers, t, n_threads);
        const int64_t end = part_start(first, call.n_centers, t + 1, n_threads);
        in_runs(begin, end, weights.group_edges, [&](int start, int stop) {
            workers[t].begin(start, stop);
            in_runs(start, stop, weights.tile_edges, [&](int from, int to) { workers[t].tile(from, to); });
            workers[t].end();
        });
    });
    for (const Worker& worker : workers) worker.add_gradients();
}

}  // namespace

// Compiled as two objects, side by side: each has the code for one kind of numbers.
#if PASS == 1
extern "C" const int64_t structure_sizes[] = {sizeof(Call), sizeof(Matrix), sizeof(Geometry), sizeof(Network), sizeof(Layer)};
extern "C" {
int energies_and_gradient(const Call* call, char* message) {
    return guarded(message, [&] { run<Worker<FLAVOUR<1>, 1>>(*call); });
}

struct Handle {
    Tape* tape;
};
int new_tape(Handle* handle, char* message) {
    return guarded(message, [&] { handle->tape = new Tape; });
}
int delete_tape(Handle* handle, char* message) {
    return guarded(message, [&] { delete handle->tape; });
}
}
#else
extern "C" int weight_gradients(const Call* call, char* message) {
    return guarded(message, [&] { run<Worker<FLAVOUR<2>, 2>>(*call); });
}
#endif
