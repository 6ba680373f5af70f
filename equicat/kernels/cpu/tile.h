// The arguments of a kernel, and a tile, which is some centres with all their edges: its memory, and linear maps and
// MLPs with their reverse.
//
// x_bar is the derivative of the sum of energies by x. On dual numbers (numbers.h) the same code gives what training
// needs: with pair vectors perturbed along given tangents, the ε part of every weight's gradient is the derivative of
// Σ_i to_energy_i E_i + dE/d(edge_vec) · tangent. In the reverse sweep dual numbers multiply as in the forward one when
// the ε part of x_bar is the adjoint of the value of x.
#pragma once

#include "geometry.h"
#include "matmul.h"
#include "memory.h"

extern "C" {
struct Matrix {
    const real* data;  // [k, n]
    int64_t k, n;
    real* grad;
};
struct Call {
    const struct Network* network;  // layers.h
    int64_t l_max, channels, n_matrices, n_plain, n_threads, n_centers, embedding;  // embedding: enum Embedding
    const int64_t* first_edge;       // [n_centers + 1]
    const real* norm;                // of each centre's environment
    const Matrix *matrices, *plain;  // sizes of matrices are multiples of BLOCK; of plain see EdgeTile
    const real* to_energy;
    real* energy;
    struct Tape* tape;  // null: keep nothing
    Geometry geometry;
};
}

// How a pair with radial functions e is embedded: e W₀ times (TIMES) or plus (PLUS) the row of a table for its pair of
// elements, or e times the matrix of that pair (MATRICES).
enum Embedding { TIMES, PLUS, MATRICES };

struct Weights {
    struct Packed {
        int k, n;
        std::vector<real> forward, backward;
    };
    std::vector<Packed> packed_weights;
    bool large = false;  // they do not fit into the L2 cache
    // The least number of edges of a tile, and of a group (edges.h). Arrays of a few edges stay in the cache, where an edge
    // has up to 50 kB of them; but every tile reads all weights, and in larger groups more edges find their reverse.
    int tile_edges = 16, group_edges = 16;

    explicit Weights(const Call& call) {
        size_t bytes = 0;
        for (int index = 0; index < call.n_matrices; index++) {
            const Matrix& m = call.matrices[index];
            const int k = m.k, n = m.n;
            packed_weights.push_back({k, n, packed(m.data, k, n), packed_transposed(m.data, k, n)});
            bytes += sizeof(real) * k * n;
        }
        large = bytes >= 1 << 19;
        if (large) tile_edges = 32, group_edges = 1024;
        if (bytes >= 1 << 22) tile_edges = 96, group_edges = 4096;
    }
};

using Indices = std::vector<int>;

// Numbers of matrices, in the order in which Python lists them; the embedding's comes first.
struct Numbering {
    int next;
    explicit Numbering(const Call& call) : next(call.embedding == MATRICES ? 0 : 1) {}
    int one() { return next++; }
    Indices several(int count) {
        Indices out;
        while (count-- > 0) out.push_back(next++);
        return out;
    }
};

// Results of matrix products in the pass for energies, in order, kept for the pass for gradients of weights, where
// they are a quarter of the arithmetic. One reel for each thread, because threads have the same centres in both passes.
struct Tape {
    std::vector<Arena> reels;
};

// [D, n, width]: values, then ε parts; rows are `step` apart.
struct Array {
    real* p = nullptr;
    int n = 0, width = 0, step = 0;
    long plane() const { return long(n) * step; }
    real* row(int r) const { return p + long(r) * step; }
};

template <int D> class Tile {
  public:
    Tile(const Call& call, const Weights& weights)
        : call(call), weights(weights), l_max(call.l_max), dims((l_max + 1) * (l_max + 1)), channels(call.channels) {
        if (D == 1) return;
        for (int k = 0; k < call.n_matrices; k++) grads.emplace_back(call.matrices[k].k * call.matrices[k].n);
        for (int k = 0; k < call.n_plain; k++) plain_grads.emplace_back(call.plain[k].k * call.plain[k].n);
    }

    // Products of matrices are written to a reel, or with dual numbers read from it.
    void attach(Arena* to) {
        reel = to;
        if (reel) reel->release({});
    }

    void add_gradients() const {
        const auto add_to = [](real* to, const std::vector<real>& from) {
            for (size_t k = 0; to && k < from.size(); k++) to[k] += from[k];
        };
        for (size_t k = 0; k < grads.size(); k++) add_to(call.matrices[k].grad, grads[k]);
        for (size_t k = 0; k < plain_grads.size(); k++) add_to(call.plain[k].grad, plain_grads[k]);
    }

  protected:
    const Call& call;
    const Weights& weights;
    const int l_max, dims, channels;
    std::vector<std::vector<real>> grads, plain_grads;
    int first_center = 0, n_centers = 0, n = 0;  // of the tile; n edges
    Indices begin;                               // first row of each centre
    Arena memory;                                // of arrays, used again by every tile

    // ---- memory ---------------------------------------------------------------------------------------------------

    // Begins with centres [start, stop); false if they have no edges.
    bool begin_tile(int start, int stop) {
        first_center = start, n_centers = stop - start;
        begin.clear();
        for (int c = start; c <= stop; c++) begin.push_back(call.first_edge[c] - call.first_edge[start]);
        n = begin.back();
        if (!n && D == 1) std::fill(call.energy + start, call.energy + stop, real(0));
        return n > 0;
    }

    Array array(int rows, int width, bool zero = false) {
        const int step = leading(width);
        const size_t size = size_t(D) * rows * step;
        real* const p = memory.take(size);
        if (zero) std::fill(p, p + size, real(0));
        return {p, rows, width, step};
    }

    template <class F> void for_centers(F f) {
        for (int c = 0; c < n_centers; c++) f(c, begin[c], begin[c + 1]);
    }

    static Num<D> at(const Array& x, int row, int column) { return load<D>(x.row(row) + column, x.plane()); }
    static void add_at(const Array& x, int row, int column, Num<D> y) { add(x.row(row) + column, x.plane(), y); }
    static void set_at(const Array& x, int row, int column, Num<D> y) { store(x.row(row) + column, x.plane(), y); }

    // ---- linear maps and MLPs -------------------------------------------------------------------------------------

    // x W.
    Array linear(const Array& x, int weight) {
        const Array out = linear_part(x, weight);
        complete(out);
        return out;
    }
    // x W as a part of a sum: nothing is kept on the reel until `complete`. The second one can add to `out`.
    Array linear_part(const Array& x, int weight) {
        const Array out = array(x.n, weights.packed_weights[weight].n);
        linear(x, weight, out, false);
        return out;
    }
    void linear(const Array& x, int weight, const Array& out, bool accumulate) {
        const Weights::Packed& w = weights.packed_weights[weight];
        multiply(x, w.k, w.n, w.forward, out, accumulate);
    }

    // x_bar = out_bar Wᵀ; adds to the gradient of W.
    Array linear_backward(const Array& x, int weight, const Array& out_bar) {
        const Array x_bar = linear_backward_part(x, weight, out_bar);
        complete(x_bar);
        return x_bar;
    }
    // Without on_reel the values are computed again: where few terms are summed that takes no longer than remembering them.
    Array linear_backward_part(const Array& x, int weight, const Array& out_bar, bool on_reel = true) {
        const Array x_bar = array(x.n, weights.packed_weights[weight].k);
        linear_backward(x, weight, out_bar, x_bar, false, on_reel);
        return x_bar;
    }
    void linear_backward(const Array& x, int weight, const Array& out_bar, const Array& x_bar, bool accumulate,
                         bool on_reel = true) {
        const Weights::Packed& w = weights.packed_weights[weight];
        multiply(out_bar, w.n, w.k, w.backward, x_bar, accumulate, on_reel);
        if constexpr (D == 2) {
            add_outer(x.n, w.k, w.n, x.p, x.step, x.plane(), out_bar.p, out_bar.step, out_bar.plane(),
                      grads[weight].data());
        }
    }

    // x times a packed weight; only ε parts if there is a reel, from which `complete` takes the values.
    void multiply(const Array& x, int k, int n, const std::vector<real>& weight, const Array& out, bool accumulate,
                  bool on_reel = true) {
        const bool known = D == 2 && reel && on_reel;
        const long from = known ? x.plane() : 0, to = known ? out.plane() : 0;
        matmul(known ? x.n : D * x.n, k, n, x.p + from, x.step, weight.data(), out.p + to, out.step, accumulate);
    }
    void complete(const Array& x) {
        if (!reel) return;
        for (int r = 0; r < x.n; r++) {
            real *kept = reel->take(x.width), *row = x.row(r);
            std::memcpy(D == 1 ? kept : row, D == 1 ? row : kept, sizeof(real) * x.width);
        }
    }

    // Returns silu(z) and writes its slope over z.
    Array activated(const Array& z) {
        const Array h = array(z.n, z.width);
        for (long k = 0; k < z.plane(); k += LANES) {
            Num<D> x = load<D>(z.p + k, z.plane());
            store(h.p + k, h.plane(), silu(x));
            store(z.p + k, z.plane(), x);
        }
        return h;
    }

    // Turns the derivative by silu(z) into that by z, in place.
    void activated_backward(const Array& slope, const Array& bar) {
        for (long k = 0; k < bar.plane(); k += LANES)
            store(bar.p + k, bar.plane(), load<D>(bar.p + k, bar.plane()) * load<D>(slope.p + k, slope.plane()));
    }

    // Slopes and inputs of hidden layers.
    struct Hidden {
        std::vector<Array> slopes, h;
    };

    // Hidden layers: z_i = x_i W_i, x_{i+1} = silu(z_i).
    Array hidden_layers(Array x, const Indices& layers, Hidden& saved) {
        saved.slopes.clear(), saved.h.assign(1, x);
        for (int w : layers) saved.slopes.push_back(linear(x, w)), saved.h.push_back(x = activated(saved.slopes.back()));
        return x;
    }

    Array hidden_layers_backward(Array bar, const Indices& layers, const Hidden& saved) {
        for (int i = int(layers.size()) - 1; i >= 0; i--) {
            activated_backward(saved.slopes[i], bar);
            bar = linear_backward(saved.h[i], layers[i], bar);
        }
        return bar;
    }

  private:
    Arena* reel = nullptr;
};
