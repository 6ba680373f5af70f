// The forms of equicat/kernels/forms.py, whose names these are, and their derivatives, for edges as they lie.
//
// A thread has consecutive centres with all their edges: no atomics, the same numbers every time.
#include "numbers.h"
#include "threads.h"

extern "C" {
struct Rows {  // of a matrix; null where there is none
    real* p;
    int64_t step;  // from row to row
};
struct EdgeForm {  // F(a, w, Y, G) = Σ_e Σ_lu a[e, u] w[e, l, u] Σ_m Y[e, lm] G[i(e), lm, u]
    int64_t n_centers, channels, n_degrees, n_threads;
    const int64_t* first_edge;  // [n_centers + 1]
    Rows a, w, y, g;            // without a, a = 1
    Rows move_w, move_y, move_g;
    Rows by_a, by_w, by_y, by_g;  // written: derivatives of F, or how they change along the moves
};
struct TensorForm {  // F(V, M, B) = Σ_e Σ_cku B[e, c, u] V[e, k, u] M[i(e), c, k, u]
    int64_t n_centers, channels, n_irreps, n_threads, by;  // by: V (0), M (1) or B (2), which is written
    const int64_t *first_edge, *irreps, *columns;          // see Contraction in equicat/kernels/irreps.py
    real *const *v, *m, *const *b;                         // V by irrep, B by output
};
}

#if PASS == 1
extern "C" const int64_t structure_sizes[] = {sizeof(EdgeForm), sizeof(TensorForm)};
#endif

namespace {

// Up to LANES channels from u on; missing ones are 0.
struct Lanes {
    int u, count;
    Vector load(const real* row) const {
        if (count == LANES) return ::load(row + u);
        real lanes[LANES] = {};
        std::memcpy(lanes, row + u, sizeof(real) * count);
        return ::load(lanes);
    }
    void store(real* row, Vector x) const {
        if (count == LANES) return ::store(row + u, x);
        real lanes[LANES];
        ::store(lanes, x);
        std::memcpy(row + u, lanes, sizeof(real) * count);
    }
    void add(real* row, Vector x) const { store(row, load(row) + x); }
};

template <class F> void for_lanes(int channels, F f) {
    for (int u = 0; u < channels; u += LANES) f(Lanes{u, std::min(LANES, channels - u)});
}

// f(centre, first edge, end) for all centres, shared among threads.
template <class Form, class F> void for_centers(const Form& form, F f) {
    check_edges(form.first_edge, form.n_centers);
    require(form.channels > 0 && form.channels < 1 << 24, "the number of channels is not between 1 and 2^24");
    const int64_t* first = form.first_edge;
    const int n = std::max<int64_t>(1, std::min<int64_t>(form.n_threads, first[form.n_centers] / 64));
    in_threads(n, [&](int t) {
        const int64_t stop = part_start(first, form.n_centers, t + 1, n);
        for (int64_t c = part_start(first, form.n_centers, t, n); c < stop; c++) f(c, first[c], first[c + 1]);
    });
}

// A number of an edge in all lanes; as a dual number with how it moves.
template <int D> Num<D> spread(const Rows& x, const Rows& move, int64_t row, int column) {
    Num<D> out;
    out.v[0] = Vector{} + x.p[row * x.step + column];
    if constexpr (D == 2) out.v[1] = Vector{} + move.p[row * move.step + column];
    return out;
}
template <int D> Num<D> load(const Lanes& lanes, const Rows& x, const Rows& move, int64_t row, int column) {
    Num<D> out;
    out.v[0] = lanes.load(x.p + row * x.step + column);
    if constexpr (D == 2) out.v[1] = lanes.load(move.p + row * move.step + column);
    return out;
}

// One degree l of all edges of a centre c. With dual numbers the ε part is written: how derivatives of F change.
template <int D, int l> void degree_form(const EdgeForm& form, int64_t c, int64_t start, int64_t stop) {
    constexpr int size = 2 * l + 1, lm = l * l, part = D - 1;
    const int64_t atom = c * form.n_degrees * form.n_degrees + lm;
    const int channels = form.channels, column = l * channels;
    for_lanes(channels, [&](const Lanes& lanes) {
        Num<D> g[size] = {}, by_g[size] = {};
        for (int m = 0; form.g.p && m < size; m++) g[m] = load<D>(lanes, form.g, form.move_g, atom + m, 0);
        for (int64_t e = start; e < stop; e++) {
            Num<D> y[size], w;
            for (int m = 0; m < size; m++) y[m] = spread<D>(form.y, form.move_y, e, lm + m);
            w = load<D>(lanes, form.w, form.move_w, e, column);
            const Vector a = form.a.p ? lanes.load(form.a.p + e * form.a.step) : Vector{} + 1;
            const Num<D> aw = w * a;
            if (form.by_g.p)
                for (int m = 0; m < size; m++) by_g[m] += aw * y[m];
            if (!form.g.p) continue;
            Num<D> dot = y[0] * g[0];
            for (int m = 1; m < size; m++) dot += y[m] * g[m];
            if (form.by_w.p) lanes.store(form.by_w.p + e * form.by_w.step + column, dot.v[part] * a);
            if (form.by_a.p) lanes.add(form.by_a.p + e * form.by_a.step, (w * dot).v[part]);
            if (form.by_y.p)
                for (int m = 0; m < size; m++) form.by_y.p[e * form.by_y.step + lm + m] += sum((aw * g[m]).v[part]);
        }
        for (int m = 0; form.by_g.p && m < size; m++)
            lanes.store(form.by_g.p + (atom + m) * form.by_g.step, by_g[m].v[part]);
    });
}

// Each degree with its number known to the compiler.
template <int D, int l = 0> void each_degree(const EdgeForm& form, int64_t c, int64_t start, int64_t stop) {
    if constexpr (l <= MAX_DEGREE) {
        if (l >= form.n_degrees) return;
        degree_form<D, l>(form, c, start, stop);
        each_degree<D, l + 1>(form, c, start, stop);
    }
}

template <int D> void edge_form(const EdgeForm& form) {
    require(form.n_degrees >= 1 && form.n_degrees <= MAX_DEGREE + 1, "the degree of harmonics is not supported");
    for_centers(form, [&](int64_t c, int64_t start, int64_t stop) {
        for (int64_t e = start; e < stop; e++) {  // what is added up
            if (form.by_a.p) std::fill_n(form.by_a.p + e * form.by_a.step, form.channels, real(0));
            if (form.by_y.p) std::fill_n(form.by_y.p + e * form.by_y.step, form.n_degrees * form.n_degrees, real(0));
        }
        each_degree<D>(form, c, start, stop);
    });
}

// One column of M, which multiplies 2l + 1 components of V: rows of these, of B, and the edges of a centre.
template <int l> struct Column {
    static constexpr int size = 2 * l + 1;
    real *v, *m, *b;
    int64_t b_step, start, stop, channels;

    real* v_row(int64_t e, int k) const { return v + (e * size + k) * channels; }
    real* m_row(int k) const { return m + k * channels; }
    real* b_row(int64_t e) const { return b + e * b_step * channels; }

    void by_v(const Lanes& lanes) const {
        Vector column[size];
        for (int k = 0; k < size; k++) column[k] = lanes.load(m_row(k));
        for (int64_t e = start; e < stop; e++) {
            const Vector x = lanes.load(b_row(e));
            for (int k = 0; k < size; k++) lanes.add(v_row(e, k), x * column[k]);
        }
    }
    void by_m(const Lanes& lanes) const {
        Vector column[size] = {};
        for (int64_t e = start; e < stop; e++) {
            const Vector x = lanes.load(b_row(e));
            for (int k = 0; k < size; k++) column[k] += x * lanes.load(v_row(e, k));
        }
        for (int k = 0; k < size; k++) lanes.store(m_row(k), column[k]);
    }
    void by_b(const Lanes& lanes) const {
        Vector column[size];
        for (int k = 0; k < size; k++) column[k] = lanes.load(m_row(k));
        for (int64_t e = start; e < stop; e++) {
            Vector total = lanes.load(v_row(e, 0)) * column[0];
            for (int k = 1; k < size; k++) total += lanes.load(v_row(e, k)) * column[k];
            lanes.store(b_row(e), total);
        }
    }
};

template <int l> void irrep_form(const TensorForm& form, int irrep, int64_t c, int64_t start, int64_t stop) {
    const int64_t *from = form.irreps + 3 * irrep, n_rows = form.irreps[3 * form.n_irreps + 2];
    Column<l> column{form.v[irrep], form.m + (c * n_rows + from[2]) * form.channels, nullptr, 0,
                     start, stop, form.channels};
    if (form.by == 0) std::fill(column.v_row(start, 0), column.v_row(stop, 0), real(0));
    for (int64_t k = from[1]; k < from[4]; k++, column.m += column.size * form.channels) {
        const int64_t* entry = form.columns + 4 * k;  // irrep, output, its width, place in it
        column.b = form.b[entry[1]] + entry[3] * form.channels, column.b_step = entry[2];
        for_lanes(form.channels, [&](const Lanes& lanes) {
            form.by == 0 ? column.by_v(lanes) : form.by == 1 ? column.by_m(lanes) : column.by_b(lanes);
        });
    }
}

template <int l = 0> void each_irrep(const TensorForm& form, int64_t c, int64_t start, int64_t stop) {
    if constexpr (l <= MAX_DEGREE) {
        for (int irrep = 0; irrep < form.n_irreps; irrep++)
            if (form.irreps[3 * irrep] == 2 * l + 1) irrep_form<l>(form, irrep, c, start, stop);
        each_irrep<l + 1>(form, c, start, stop);
    }
}

}  // namespace

// Compiled as two objects, side by side.
#if PASS == 1
extern "C" int derivatives(const EdgeForm* form, char* message) {
    return guarded(message, [&] { edge_form<1>(*form); });
}
extern "C" int tensor_derivative(const TensorForm* form, char* message) {
    return guarded(message, [&] {
        for_centers(*form, [&](int64_t c, int64_t start, int64_t stop) { each_irrep(*form, c, start, stop); });
    });
}
#else
extern "C" int changes(const EdgeForm* form, char* message) {
    return guarded(message, [&] { edge_form<2>(*form); });
}
#endif
