// What kernels of strictly local networks share: a tile of centres with all their edges, its memory, linear maps and MLPs
// with their reverse, environments, threads.
//
// x_bar is the derivative of the sum of energies by x. On dual numbers (numbers.h) the same code gives what training
// needs: with the inputs perturbed along given tangents, the ε part of every weight's gradient is the derivative of
// Σ_i to_energy_i E_i + (dE/de · e_tangent + dE/dgeometry · geometry_tangent). In the reverse sweep dual numbers multiply
// as in the forward one when the ε part of x_bar is the adjoint of the value of x.
#pragma once

#include <thread>

#include "matmul.h"

extern "C" {
struct Matrix {
    const real* data;  // [k, n]
    int64_t k, n;
    real* grad;
};
struct Call {
    const void* network;  // what the kernel has to know beside this
    int64_t l_max, channels, n_matrices, n_plain, n_threads, n_centers, width, n_geometry;
    const int64_t* first_edge;  // [n_centers + 1]
    const real* norm;           // of each centre's environment
    int64_t embedding;          // of e: 0 as it is, 1 times, 2 plus a row of the table for the pair of elements
    const int64_t* pair;        // of each edge
    const real *e, *geometry;   // [n_edges, width]; [n_edges, n_geometry]: harmonics, and what else the network takes
    const real *e_tangent, *geometry_tangent, *to_energy;
    const Matrix *matrices, *plain;  // k and n of matrices are multiples of BLOCK; plain ends with table and readout
    real *energy, *e_bar, *geometry_bar;
};
}

constexpr int MAX_DEGREE = 4;

// f with the degree as a constant.
template <class F> void for_degree(int degree, F f) {
    switch (degree) {
        case 0: return f(std::integral_constant<int, 0>{});
        case 1: return f(std::integral_constant<int, 1>{});
        case 2: return f(std::integral_constant<int, 2>{});
        case 3: return f(std::integral_constant<int, 3>{});
        default: return f(std::integral_constant<int, MAX_DEGREE>{});
    }
}
template <class F> void for_degrees(int l_max, F f) {
    for (int degree = 0; degree <= l_max; degree++) for_degree(degree, f);
}

struct Weights {
    struct Packed {
        int k, n;
        std::vector<real> forward, backward;
    };
    std::vector<Packed> packed_weights;
    int tile_rows;  // that a tile should have, at least: more where weights do not fit into the second cache

    explicit Weights(const Call& call) {
        size_t size = 0;
        for (int index = 0; index < call.n_matrices; index++) {
            const Matrix& m = call.matrices[index];
            const int k = m.k, n = m.n;
            packed_weights.push_back({k, n, packed(m.data, k, n), packed(transposed(m.data, k, n).data(), n, k)});
            size += sizeof(real) * k * n;
        }
        tile_rows = size < (1 << 19) ? 48 : 192;
    }
};

using Indices = std::vector<int>;  // of matrices

// Numbers of matrices, in the order in which Python lists them; the embedding's comes first.
struct Numbering {
    int next;
    explicit Numbering(const Call& call) : next(call.embedding ? 1 : 0) {}
    int one() { return next++; }
    Indices several(int count) {
        Indices out;
        while (count-- > 0) out.push_back(next++);
        return out;
    }
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

    void add_gradients() const {
        const auto add_to = [](real* to, const std::vector<real>& from) {
            for (size_t k = 0; k < from.size(); k++) to[k] += from[k];
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
    Array e, radial, geometry, geometry_bar;

    // ---- memory ---------------------------------------------------------------------------------------------------

    // Centres [start, stop); false if they have no edges.
    bool begin_tile(int start, int stop) {
        block_at = used = 0;
        first_center = start, n_centers = stop - start;
        begin.clear();
        for (int c = start; c <= stop; c++) begin.push_back(call.first_edge[c] - call.first_edge[start]);
        n = begin.back();
        if (!n && D == 1) std::fill(call.energy + start, call.energy + stop, real(0));
        if (n) geometry = rows_of(call.geometry, call.geometry_tangent, call.n_geometry);
        if (n) geometry_bar = array(n, call.n_geometry, true);
        return n > 0;
    }

    Array array(int rows, int width, bool zero = false) {
        const int step = leading(width);
        const size_t size = size_t(D) * rows * step;
        while (true) {
            if (block_at == blocks.size()) blocks.emplace_back(std::max(size, size_t(1) << 18));
            if (used + size <= blocks[block_at].size()) break;
            block_at++, used = 0;
        }
        real* p = blocks[block_at].data() + used;
        used += size;
        if (zero) std::fill(p, p + size, real(0));
        return {p, rows, width, step};
    }

    // Rows of the caller's arrays, values and tangents, as one of ours.
    Array rows_of(const real* values, const real* tangents, int width) {
        const Array out = array(n, width);
        const long offset = call.first_edge[first_center] * width;
        for (int j = 0; j < n; j++) {
            std::memcpy(out.row(j), values + offset + long(j) * width, sizeof(real) * width);
            if constexpr (D == 2)
                std::memcpy(out.row(j) + out.plane(), tangents + offset + long(j) * width, sizeof(real) * width);
        }
        return out;
    }

    // And back: gradients, or with dual numbers their derivatives.
    void rows_to(real* to, const Array& from) {
        for (int j = 0; j < n; j++)
            std::memcpy(to + (call.first_edge[first_center] + j) * from.width, from.row(j) + (D - 1) * from.plane(),
                        sizeof(real) * from.width);
    }

    template <class F> void for_centers(F f) {
        for (int c = 0; c < n_centers; c++) f(c, begin[c], begin[c + 1]);
    }

    static Num<D> at(const Array& x, int row, int column) { return load<D>(x.row(row) + column, x.plane()); }
    static void add_at(const Array& x, int row, int column, Num<D> y) { add(x.row(row) + column, x.plane(), y); }
    static void set_at(const Array& x, int row, int column, Num<D> y) { store(x.row(row) + column, x.plane(), y); }
    Num<D> harmonic(int j, int lm) const { return spread<D>(geometry.row(j) + lm, geometry.plane()); }
    void add_to_harmonic(int j, int lm, Num<D> x) { add_sum(geometry_bar.row(j) + lm, geometry_bar.plane(), x); }

    // ---- linear maps and MLPs -------------------------------------------------------------------------------------

    Array linear(const Array& x, int weight) {
        const Array out = array(x.n, weights.packed_weights[weight].n);
        linear(x, weight, out, false);
        return out;
    }

    void linear(const Array& x, int weight, const Array& out, bool accumulate) {
        const Weights::Packed& w = weights.packed_weights[weight];
        matmul(D * x.n, w.k, w.n, x.p, x.step, w.forward.data(), out.p, out.step, accumulate);
    }

    // x_bar (+)= out_bar Wᵀ, and the gradient of W.
    void linear_backward(const Array& x, int weight, const Array& out_bar, const Array& x_bar, bool accumulate) {
        const Weights::Packed& w = weights.packed_weights[weight];
        matmul(D * x.n, w.n, w.k, out_bar.p, out_bar.step, w.backward.data(), x_bar.p, x_bar.step, accumulate);
        if constexpr (D == 2) {
            real* grad = grads[weight].data();
            add_outer(x.n, w.k, w.n, x.p, x.step, out_bar.p + out_bar.plane(), out_bar.step, grad);
            add_outer(x.n, w.k, w.n, x.p + x.plane(), x.step, out_bar.p, out_bar.step, grad);
        }
    }

    Array linear_backward(const Array& x, int weight, const Array& out_bar) {
        const Array x_bar = array(x.n, weights.packed_weights[weight].k);
        linear_backward(x, weight, out_bar, x_bar, false);
        return x_bar;
    }

    // silu(z), which leaves its slope in the place of z.
    Array activated(const Array& z) {
        const Array h = array(z.n, z.width);
        for (long k = 0; k < z.plane(); k += LANES) {
            Num<D> x = load<D>(z.p + k, z.plane());
            store(h.p + k, h.plane(), silu(x));
            store(z.p + k, z.plane(), x);
        }
        return h;
    }

    // From the derivative by silu(z) to that by z, in place.
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

    // ---- the embedding --------------------------------------------------------------------------------------------

    // e, or with an embedding e W₀ times or plus the pair's row of the table.
    Array embedded() {
        e = rows_of(call.e, call.e_tangent, call.width);
        if (!call.embedding) return e;
        radial = linear(e, 0);
        const Array out = array(n, radial.width);
        for (int j = 0; j < n; j++)
            for (int u = 0; u < out.width; u += LANES) {
                const Vector entry = load(table_row(j) + u);
                Num<D> x = at(radial, j, u);
                if (call.embedding == 1) x = x * entry;
                if (call.embedding == 2) x.v[0] += entry;
                set_at(out, j, u, x);
            }
        return out;
    }

    // The derivative by e; that by the table is added to its gradient.
    Array embedded_backward(const Array& bar) {
        if (!call.embedding) return bar;
        for (int j = 0; j < n; j++)
            for (int u = 0; u < bar.width; u += LANES) {
                const Num<D> x = at(bar, j, u);
                if constexpr (D == 2) {
                    real* grad = plain_grads[call.n_plain - 2].data() + (table_row(j) - table().data) + u;
                    store(grad, load(grad) + (call.embedding == 1 ? x * at(radial, j, u) : x).v[1]);
                }
                if (call.embedding == 1) set_at(bar, j, u, x * load(table_row(j) + u));
            }
        return linear_backward(e, 0, bar);
    }

    const Matrix& table() const { return call.plain[call.n_plain - 2]; }
    const real* table_row(int j) const {
        return table().data + call.pair[call.first_edge[first_center] + j] * table().n;
    }

    // ---- environments ---------------------------------------------------------------------------------------------

    // A[lm, u] = norm Σ_j Y[j, lm] w[j, l, u] for every centre; w begins at column `from` of `w`.
    Array environment(const Array& w, int from) {
        const Array env = array(n_centers * dims, channels);
        for_centers([&](int c, int start, int stop) {
            const Vector norm = Vector{} + call.norm[first_center + c];
            for_degrees(l_max, [&](auto degree) {
                constexpr int l = degree, size = 2 * l + 1;
                for (int u = 0; u < channels; u += LANES) {
                    Num<D> acc[size] = {};
                    for (int j = start; j < stop; j++) {
                        const Num<D> x = at(w, j, from + l * channels + u);
                        for (int m = 0; m < size; m++) acc[m] += harmonic(j, l * l + m) * x;
                    }
                    for (int m = 0; m < size; m++) set_at(env, c * dims + l * l + m, u, acc[m] * norm);
                }
            });
        });
        return env;
    }

    // To geometry_bar, and to the columns from `from` on of w_bar.
    void environment_backward(const Array& w, int from, const Array& env_bar, const Array& w_bar) {
        for_centers([&](int c, int start, int stop) {
            const Vector norm = Vector{} + call.norm[first_center + c];
            for_degrees(l_max, [&](auto degree) {
                constexpr int l = degree, size = 2 * l + 1;
                for (int j = start; j < stop; j++) {
                    Num<D> to_sh[size] = {};
                    for (int u = 0; u < channels; u += LANES) {
                        const int column = from + l * channels + u;
                        const Num<D> x = at(w, j, column);
                        Num<D> to_w = {};
                        for (int m = 0; m < size; m++) {
                            const Num<D> bar = at(env_bar, c * dims + l * l + m, u) * norm;
                            to_w += harmonic(j, l * l + m) * bar;
                            to_sh[m] += x * bar;
                        }
                        set_at(w_bar, j, column, to_w);
                    }
                    for (int m = 0; m < size; m++) add_to_harmonic(j, l * l + m, to_sh[m]);
                }
            });
        });
    }

    // ---- energies -------------------------------------------------------------------------------------------------

    // E_i = Σ_j h^ij · v with the last weights v of the readout; only values are asked for.
    void energies(const Array& h) {
        const real* last = call.plain[call.n_plain - 1].data;
        if constexpr (D == 1) for_centers([&](int c, int start, int stop) {
            Vector total = {};
            for (int j = start; j < stop; j++)
                for (int u = 0; u < h.width; u += LANES) total += load(h.row(j) + u) * load(last + u);
            call.energy[first_center + c] = sum(total);
        });
    }

    // The derivative by h: v, and as its ε part to_energy v.
    Array energies_backward(const Array& h) {
        const Array bar = array(n, h.width);
        const real* last = call.plain[call.n_plain - 1].data;
        for_centers([&](int c, int start, int stop) {
            for (int j = start; j < stop; j++)
                for (int u = 0; u < h.width; u += LANES) {
                    store(bar.row(j) + u, load(last + u));
                    if constexpr (D == 2) {
                        const real to_energy = call.to_energy[first_center + c];
                        store(bar.row(j) + bar.plane() + u, load(last + u) * to_energy);
                        const Num<D> x = at(h, j, u);
                        real* grad = plain_grads.back().data() + u;
                        store(grad, load(grad) + x.v[0] * to_energy + x.v[1]);
                    }
                }
        });
        return bar;
    }

  private:
    std::vector<std::vector<real>> blocks;  // memory, used again by every tile
    size_t block_at = 0, used = 0;
};

// All centres. Each thread takes a run of consecutive ones with about as many edges: the same sums, in the same order,
// every time. A Worker is a Tile with a method tile(start, stop).
template <class Worker, class Network> void run(const Call& call, const Network& network) {
    const int64_t *first = call.first_edge, n_edges = first[call.n_centers];
    const Weights weights(call);
    const int n_threads = std::max<int64_t>(1, std::min<int64_t>(call.n_threads, n_edges / weights.tile_rows));
    std::vector<Worker> workers(n_threads, Worker(call, weights, network));
    const auto cut = [&](int part) {
        return part == n_threads ? call.n_centers
                                 : std::lower_bound(first, first + call.n_centers, n_edges / n_threads * part) - first;
    };
    const auto work = [&](int t) {
        const int stop = cut(t + 1);
        for (int start = cut(t), end; start < stop; start = end) {
            for (end = start + 1; end < stop && first[end] - first[start] < weights.tile_rows;) end++;
            workers[t].tile(start, end);
        }
    };
#ifdef _OPENMP
    // PyTorch's own threads, which would otherwise wait for work, spinning, on the cores that ours need.
#pragma omp parallel for schedule(static, 1) num_threads(n_threads)
    for (int t = 0; t < n_threads; t++) work(t);
#else
    std::vector<std::thread> threads;
    for (int t = 1; t < n_threads; t++) threads.emplace_back(work, t);
    work(0);
    for (std::thread& thread : threads) thread.join();
#endif
    for (const Worker& worker : workers) worker.add_gradients();
}
