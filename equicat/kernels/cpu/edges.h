// Edges of a tile: geometry, embedding, environments, energies, each with its reverse; and all tiles of a call.
#pragma once

#include "threads.h"
#include "tile.h"

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

template <int D> class EdgeTile : public Tile<D> {
    using Base = Tile<D>;

  public:
    EdgeTile(const Call& call, const Weights& weights)
        : Base(call, weights), frequencies(call.n_plain - 3), table(call.n_plain - 2), last(call.n_plain - 1) {}

  protected:
    using Base::call, Base::weights, Base::l_max, Base::dims, Base::channels, Base::plain_grads;
    using Base::first_center, Base::n_centers, Base::n;
    using Base::array, Base::linear, Base::linear_backward, Base::for_centers, Base::at, Base::add_at, Base::set_at;

    const int frequencies, table, last;  // where they are in call.plain
    // Geometry: a row for each harmonic and the envelope, edges of the tile along it; of rows the envelope alone.
    Array geometry, geometry_bar, row_geometry, row_geometry_bar, e, radial;

    static Num<D> along_edges(const Array& x, int what, int j) { return spread<D>(x.row(what) + j, x.plane()); }
    // Training needs no derivative by geometry.
    static void add_along_edges(const Array& x, int what, int j, Num<D> y) {
        if constexpr (D == 1) x.row(what)[j] += sum(y.v[0]);
    }
    Num<D> harmonic(int j, int lm) const { return along_edges(geometry, lm, j); }
    void add_to_harmonic(int j, int lm, Num<D> x) { add_along_edges(geometry_bar, lm, j, x); }

    // ---- groups and tiles -------------------------------------------------------------------------------------------
    //
    // A tile is some centres of a group with all their edges. What is embedded are rows. The embedding of ij sees the
    // distance and both elements; if these are equal, that of ji is the same, and both edges have one row if they are in
    // one group. Which takes looking for, and copying from rows to edges: worth it where products of matrices are large.

    int group_start = 0;
    int64_t first = 0;          // edge of the group, counted in the call
    Indices row, pair;          // of each edge of the group; of elements, of each row
    std::vector<int64_t> edge;  // the first of each row, counted in the call
    int tile_start = 0;         // the tile's first edge, counted in the group
    typename Base::Mark group;  // where the memory of tiles begins

    int n_rows() const { return edge.size(); }
    bool own_rows() const { return !weights.large; }  // then a group is a tile, and its edges are its rows

    // Centres [start, stop); false if they have no edges.
    bool begin_group(int start, int stop) {
        this->release({});
        const Geometry& g = call.geometry;
        group_start = start, first = call.first_edge[start];
        row.clear(), pair.clear(), edge.clear();
        for (int c = start; c < stop; c++)
            for (int64_t j = call.first_edge[c]; j < call.first_edge[c + 1]; j++) {
                const int64_t twin = own_rows() ? -1 : reverse(c, j);
                row.push_back(twin < 0 ? n_rows() : row[twin - first]);
                if (twin >= 0) continue;
                edge.push_back(j), pair.push_back(g.species[c] * g.n_species + g.species[g.neighbor[j]]);
            }
        return n_rows() > 0;
    }
    // Of edge j of centre c that from its other end, if it has a row already and joins atoms of the same element, else -1.
    int64_t reverse(int c, int64_t j) const {
        const Geometry& g = call.geometry;
        const int64_t other = g.neighbor[j];
        if (other < group_start || other > c || g.species[other] != g.species[c]) return -1;
        const int64_t stop = other < c ? call.first_edge[other + 1] : j;
        for (int64_t k = call.first_edge[other]; k < stop; k++)
            if (g.neighbor[k] == c && opposite(g.edge_vec + 3 * j, g.edge_vec + 3 * k)) return k;
        return -1;
    }

    // What was made of rows stays until the next group.
    void end_rows() { group = this->mark(); }

    // Centres [start, stop) of the group, and the geometry of their edges; false if they have none.
    bool begin_tile(int start, int stop) {
        this->release(group);
        if (!Base::begin_tile(start, stop)) return false;
        tile_start = call.first_edge[start] - first;
        const Geometry& g = call.geometry;
        geometry = array(dims + 1, in_lanes(n)), geometry_bar = array(dims + 1, in_lanes(n), true);
        for_edges([&](int j, int, const Pairs<D>& pairs) {
            Num<D> y[MAX_HARMONICS];
            harmonics(g, l_max, pairs.unit, y);
            for (int lm = 0; lm < dims; lm++) set_at(geometry, lm, j, y[lm]);
            set_at(geometry, dims, j, along(envelope(pairs.x.v[0], g.envelope_p), pairs.x));
        });
        return true;
    }

    static int in_lanes(int n) { return (n + LANES - 1) / LANES * LANES; }
    // After the last tile: what came back to rows can go on; false if there are none.
    bool end_tiles() {
        if (!own_rows()) this->release(group);
        return n_rows() > 0;
    }

    // f(first, count, their pair vectors) for LANES rows at a time, or edges of the tile.
    template <class F> void for_rows(F f) const {
        for (int j = 0; j < n_rows(); j += LANES) {
            const int count = std::min(LANES, n_rows() - j);
            f(j, count, pairs_at<D>(call.geometry, count, [&](int k) { return edge[j + k]; }, &pair[j]));
        }
    }
    template <class F> void for_edges(F f) const {
        for (int j = 0; j < n; j += LANES) {
            const int count = std::min(LANES, n - j);
            int pairs[LANES];
            for (int k = 0; k < count; k++) pairs[k] = pair[row[tile_start + j + k]];
            f(j, count, pairs_at<D>(call.geometry, count, [&](int k) { return first + tile_start + j + k; }, pairs));
        }
    }

    // An array by row as one by edge of the tile.
    Array to_edges(const Array& x) {
        if (own_rows()) return x;
        const Array out = array(n, x.width);
        for (int d = 0; d < D; d++)
            for (int j = 0; j < n; j++)
                std::memcpy(out.row(j) + d * out.plane(), x.row(row[tile_start + j]) + d * x.plane(),
                            sizeof(real) * x.width);
        return out;
    }
    // The derivative by an array by row: where those by edge are added up, zeros to begin with.
    Array rows_bar(const Array& x) { return own_rows() ? Array{} : array(x.n, x.width, true); }
    void add_to_rows(Array& to, const Array& bar) {
        if (own_rows()) {
            to = bar;
            return;
        }
        for (int j = 0; j < n; j++)
            for (int u = 0; u < bar.width; u += LANES) add_at(to, row[tile_start + j], u, at(bar, j, u));
    }

    // ---- the embedding ----------------------------------------------------------------------------------------------

    // One column of some rows.
    static void to_rows(const Array& to, int j, int count, int column, Num<D> x) {
        real lanes[LANES];
        for (int d = 0; d < D; d++) {
            store(lanes, x.v[d]);
            for (int k = 0; k < count; k++) to.row(j + k)[d * to.plane() + column] = lanes[k];
        }
    }
    static Num<D> from_rows(const Array& from, int j, int count, int column) {
        real lanes[LANES] = {};
        Num<D> x;
        for (int d = 0; d < D; d++) {
            for (int k = 0; k < count; k++) lanes[k] = from.row(j + k)[d * from.plane() + column];
            x.v[d] = load(lanes);
        }
        return x;
    }
    Sloped radial_function(int k, Vector x, Sloped u) const {
        const Geometry& g = call.geometry;
        if (!g.splines) return bessel(call.plain[frequencies].data[k], x, u);
        return spline(x, real(k - g.span) / g.n_radial, real(g.span + 1) / g.n_radial);
    }

    // The envelope and radial functions e of all rows, and what the embedding makes of these.
    Array embedded() {
        const Geometry& g = call.geometry;
        e = array(n_rows(), (g.n_radial + BLOCK - 1) / BLOCK * BLOCK, true);
        row_geometry = array(1, in_lanes(n_rows())), row_geometry_bar = array(1, in_lanes(n_rows()), true);
        for_rows([&](int j, int count, const Pairs<D>& pairs) {
            const Sloped u = envelope(pairs.x.v[0], g.envelope_p);
            set_at(row_geometry, 0, j, along(u, pairs.x));
            for (int k = 0; k < g.n_radial; k++)
                to_rows(e, j, count, k, along(radial_function(k, pairs.x.v[0], u), pairs.x));
        });
        if (call.embedding == MATRICES) return embedded_by_matrices();
        radial = linear(e, 0);
        const Array out = array(n_rows(), radial.width);
        for (int j = 0; j < n_rows(); j++)
            for (int u = 0; u < out.width; u += LANES) {
                const Vector entry = load(table_row(pair[j]) + u);
                Num<D> x = at(radial, j, u);
                if (call.embedding == TIMES) x = x * entry;
                if (call.embedding == PLUS) x.v[0] += entry;
                set_at(out, j, u, x);
            }
        return out;
    }

    // To weights, and in an inference to the gradient.
    void embedded_backward(const Array& bar) {
        if (call.embedding == MATRICES) return radial_backward(embedded_by_matrices_backward(bar));
        for (int j = 0; j < n_rows(); j++)
            for (int u = 0; u < bar.width; u += LANES) {
                const Num<D> x = at(bar, j, u);
                add_to_table(pair[j], u, call.embedding == TIMES ? x * at(radial, j, u) : x);
                if (call.embedding == TIMES) set_at(bar, j, u, x * load(table_row(pair[j]) + u));
            }
        radial_backward(linear_backward(e, 0, bar));
    }

    // Σ_k e_k T[pair, k]; most splines are 0 at any one distance.
    Array embedded_by_matrices() {
        const Array out = array(n_rows(), call.plain[table].n, true);
        for_radial([&](int j, int, Num<D> x, int entry) {
            for (int u = 0; u < out.width; u += LANES) add_at(out, j, u, x * load(table_row(entry) + u));
        });
        return out;
    }
    Array embedded_by_matrices_backward(const Array& bar) {
        const Array e_bar = array(n_rows(), e.width, true);
        for_radial([&](int j, int k, Num<D> x, int entry) {
            Num<D> total = {};
            for (int u = 0; u < bar.width; u += LANES) {
                total += at(bar, j, u) * load(table_row(entry) + u);
                add_to_table(entry, u, at(bar, j, u) * x);
            }
            if (D == 1) e_bar.row(j)[k] = sum(total.v[0]);
        });
        return e_bar;
    }
    // f(row, radial function, its value, row of the table) where it is not 0.
    template <class F> void for_radial(F f) {
        const int n_radial = call.geometry.n_radial;
        for (int j = 0; j < n_rows(); j++)
            for (int k = 0; k < n_radial; k++)
                if (e.row(j)[k]) f(j, k, spread<D>(e.row(j) + k, e.plane()), pair[j] * n_radial + k);
    }

    const real* table_row(int row) const { return call.plain[table].data + row * call.plain[table].n; }
    void add_to_table(int row, int column, Num<D> x) {
        if constexpr (D == 2) {
            real* grad = plain_grads[table].data() + row * call.plain[table].n + column;
            store(grad, load(grad) + x.v[1]);
        }
    }

    // ---- to pair vectors --------------------------------------------------------------------------------------------

    // From harmonics and the envelope of the tile's edges.
    void geometry_backward() {
        if constexpr (D == 1) for_edges([&](int j, int count, const Pairs<D>& pairs) {
            const Geometry& g = call.geometry;
            Num<D> y[MAX_HARMONICS];
            Vector y_bar[MAX_HARMONICS], unit_bar[3], along_unit = {}, bar[3];
            harmonics(g, l_max, pairs.unit, y);
            for (int lm = 0; lm < dims; lm++) y_bar[lm] = at(geometry_bar, lm, j).v[0];
            harmonics_backward(g, l_max, y, y_bar, unit_bar);
            for (int k = 0; k < 3; k++) along_unit += unit_bar[k] * pairs.unit[k].v[0];
            const Vector x_bar = at(geometry_bar, dims, j).v[0] * envelope(pairs.x.v[0], g.envelope_p).slope;
            const Vector r_bar = x_bar * pairs.inverse_cutoff - along_unit * pairs.inverse_r;
            for (int k = 0; k < 3; k++) bar[k] = unit_bar[k] * pairs.inverse_r + pairs.unit[k].v[0] * r_bar;
            for (int k = 0; k < 3; k++) {
                real lanes[LANES];
                store(lanes, bar[k]);
                for (int lane = 0; lane < count; lane++)
                    g.gradient[3 * (first + tile_start + j + lane) + k] = lanes[lane];
            }
        });
    }

    // From the envelope and radial functions of rows, to the first edge of each; or to the frequencies.
    void radial_backward(const Array& e_bar) {
        const Geometry& g = call.geometry;
        const Matrix& w = call.plain[frequencies];
        if (D == 2 && !w.grad) return;
        for_rows([&](int j, int count, const Pairs<D>& pairs) {
            const Sloped u = envelope(pairs.x.v[0], g.envelope_p);
            if constexpr (D == 2) {
                for (int k = 0; k < w.n; k++) {
                    const Num<D> by_frequency = along(bessel_by_frequency(w.data[k], pairs.x.v[0], u), pairs.x);
                    plain_grads[frequencies][k] += sum((from_rows(e_bar, j, count, k) * by_frequency).v[1]);
                }
            } else {
                Vector x_bar = at(row_geometry_bar, 0, j).v[0] * u.slope;
                for (int k = 0; k < g.n_radial; k++)
                    x_bar += from_rows(e_bar, j, count, k).v[0] * radial_function(k, pairs.x.v[0], u).slope;
                for (int k = 0; k < 3; k++) {
                    real lanes[LANES];
                    store(lanes, pairs.unit[k].v[0] * x_bar * pairs.inverse_cutoff);
                    for (int lane = 0; lane < count; lane++) g.gradient[3 * edge[j + lane] + k] += lanes[lane];
                }
            }
        });
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
        const real* v = call.plain[last].data;
        if constexpr (D == 1) for_centers([&](int c, int start, int stop) {
            Vector total = {};
            for (int j = start; j < stop; j++)
                for (int u = 0; u < h.width; u += LANES) total += load(h.row(j) + u) * load(v + u);
            call.energy[first_center + c] = sum(total);
        });
    }

    // The derivative by h: v, and as its ε part to_energy v.
    Array energies_backward(const Array& h) {
        const Array bar = array(n, h.width);
        const real* v = call.plain[last].data;
        for_centers([&](int c, int start, int stop) {
            for (int j = start; j < stop; j++)
                for (int u = 0; u < h.width; u += LANES) {
                    store(bar.row(j) + u, load(v + u));
                    if constexpr (D == 2) {
                        const real to_energy = call.to_energy[first_center + c];
                        store(bar.row(j) + bar.plane() + u, load(v + u) * to_energy);
                        const Num<D> x = at(h, j, u);
                        real* grad = plain_grads[last].data() + u;
                        store(grad, load(grad) + x.v[0] * to_energy + x.v[1]);
                    }
                }
        });
        return bar;
    }
};

// Throws for what no network asks for, before anything is computed with it.
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

// All centres. Each thread takes a run of consecutive ones with about as many edges: the same sums, in the same order,
// every time. A Worker is an EdgeTile with methods for groups and the tiles that they consist of.
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
