// Edges of a tile: geometry, embedding, environments and energies, each with its reverse.
#pragma once

#include "tile.h"

// Calls f with the degree as a constant of the compiler.
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

    const int frequencies, table, last;  // numbers of these arrays, the end of call.plain
    Array geometry, geometry_bar;          // [harmonics and the envelope, edges of the tile]
    Array row_geometry, row_geometry_bar;  // [the envelope, rows]
    Array e, radial;                       // radial functions of rows, and these times W₀

    static Num<D> along_edges(const Array& x, int what, int j) { return spread<D>(x.row(what) + j, x.plane()); }
    // Training needs no derivative by geometry.
    static void add_along_edges(const Array& x, int what, int j, Num<D> y) {
        if constexpr (D == 1) x.row(what)[j] += sum(y.v[0]);
    }
    Num<D> harmonic(int j, int lm) const { return along_edges(geometry, lm, j); }
    void add_to_harmonic(int j, int lm, Num<D> x) { add_along_edges(geometry_bar, lm, j, x); }

    // ---- groups and tiles -------------------------------------------------------------------------------------------
    //
    // A tile is some centres with all their edges; a group is some consecutive tiles. A row is one embedding of a pair:
    // edges ij and ji between equal elements have the same one, and share a row if both are in the group. Finding the
    // partner and copying rows to edges cost time, so this is done for large weights only; otherwise a group is one
    // tile and each edge has its own row.

    int group_start = 0;
    int64_t first = 0;          // the group's first edge, counted in the call
    Indices row;                // of each edge of the group
    Indices pair;               // ordered pair of elements of each row
    std::vector<int64_t> edge;  // one edge of each row, counted in the call
    int tile_start = 0;         // the tile's first edge, counted in the group
    Arena::Mark group;          // where the memory of tiles begins

    int n_rows() const { return edge.size(); }
    bool own_rows() const { return !weights.large; }  // each edge has its own row, and a group is one tile

    // Begins with centres [start, stop); false if they have no edges.
    bool begin_group(int start, int stop) {
        this->memory.release({});
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
    // The reverse of edge j (from the neighbour to centre c); -1 if it has no row yet or the two elements differ.
    int64_t reverse(int c, int64_t j) const {
        const Geometry& g = call.geometry;
        const int64_t other = g.neighbor[j];
        if (other < group_start || other > c || g.species[other] != g.species[c]) return -1;
        const int64_t stop = other < c ? call.first_edge[other + 1] : j;
        for (int64_t k = call.first_edge[other]; k < stop; k++)
            if (g.neighbor[k] == c && opposite(g.edge_vec + 3 * j, g.edge_vec + 3 * k)) return k;
        return -1;
    }

    // Keeps the arrays made so far, which are those of rows, until the next group.
    void end_rows() { group = this->memory.mark(); }

    // Begins with centres [start, stop) of the group: the geometry of their edges; false if they have none.
    bool begin_tile(int start, int stop) {
        this->memory.release(group);
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
    // After the last tile, before derivatives go on from rows; false if the group has no rows.
    bool end_tiles() {
        if (!own_rows()) this->memory.release(group);
        return n_rows() > 0;
    }

    // f(first, count, their pair vectors) for LANES rows at a time (for_rows) or edges of the tile (for_edges).
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

    // Copies an array of rows to the edges of the tile.
    Array to_edges(const Array& x) {
        if (own_rows()) return x;
        const Array out = array(n, x.width);
        for (int d = 0; d < D; d++)
            for (int j = 0; j < n; j++)
                std::memcpy(out.row(j) + d * out.plane(), x.row(row[tile_start + j]) + d * x.plane(),
                            sizeof(real) * x.width);
        return out;
    }
    // Zeros, to which add_to_rows adds the derivatives of the edges that share a row.
    Array rows_bar_of(const Array& x) { return own_rows() ? Array{} : array(x.n, x.width, true); }
    void add_to_rows(Array& to, const Array& bar) {
        if (own_rows()) {
            to = bar;
            return;
        }
        for (int j = 0; j < n; j++)
            for (int u = 0; u < bar.width; u += LANES) add_at(to, row[tile_start + j], u, at(bar, j, u));
    }

    // ---- the embedding ----------------------------------------------------------------------------------------------

    // Writes (to_rows) or reads (from_rows) one column of `count` rows.
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

    // The embedding of all rows, from their envelope and radial functions e.
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

    // From the derivative by the embedding to those by its weights, and in an inference to the gradient.
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
    // f(row, radial function, its value, row of the table) for radial functions that are not 0.
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

    // Writes the gradient of the tile's edges, from the derivatives by their harmonics and envelope.
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

    // From the derivatives by envelope and radial functions of rows: adds to the gradient of each row's edge, or in
    // training to the derivative by the frequencies.
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

    // A[lm, u] = norm Σ_j Y[j, lm] w[j, l, u] for every centre; w may have more columns.
    Array environment(const Array& w) {
        const Array env = array(n_centers * dims, channels);
        for_centers([&](int c, int start, int stop) {
            const Vector norm = Vector{} + call.norm[first_center + c];
            for_degrees(l_max, [&](auto degree) {
                constexpr int l = degree, size = 2 * l + 1;
                for (int u = 0; u < channels; u += LANES) {
                    Num<D> acc[size] = {};
                    for (int j = start; j < stop; j++) {
                        const Num<D> x = at(w, j, l * channels + u);
                        for (int m = 0; m < size; m++) acc[m] += harmonic(j, l * l + m) * x;
                    }
                    for (int m = 0; m < size; m++) set_at(env, c * dims + l * l + m, u, acc[m] * norm);
                }
            });
        });
        return env;
    }

    // Adds to geometry_bar, and writes the columns of w_bar that the environment reads.
    void environment_backward(const Array& w, const Array& env_bar, const Array& w_bar) {
        for_centers([&](int c, int start, int stop) {
            const Vector norm = Vector{} + call.norm[first_center + c];
            for_degrees(l_max, [&](auto degree) {
                constexpr int l = degree, size = 2 * l + 1;
                for (int j = start; j < stop; j++) {
                    Num<D> to_sh[size] = {};
                    for (int u = 0; u < channels; u += LANES) {
                        const int column = l * channels + u;
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

    // E_i = Σ_j h^ij · v with the last weights v of the readout; without ε parts, which nobody reads.
    void energies(const Array& h) {
        const real* v = call.plain[last].data;
        if constexpr (D == 1) for_centers([&](int c, int start, int stop) {
            Vector total = {};
            for (int j = start; j < stop; j++)
                for (int u = 0; u < h.width; u += LANES) total += load(h.row(j) + u) * load(v + u);
            call.energy[first_center + c] = sum(total);
        });
    }

    // The derivative by h, which is v; its ε part is to_energy v.
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
