// Pair vectors as networks see them: distances, radial functions and spherical harmonics, LANES pairs at a time.
#pragma once

#include "numbers.h"

extern "C" {
struct Geometry {
    int64_t n_species, splines, n_radial, envelope_p, span, n_terms;
    const int64_t *neighbor, *species;  // of each edge; of each atom
    const real* inverse_cutoff;         // by ordered pair of elements
    const int64_t* terms;               // (c, a, b): Y_c = Σ coefficient Y_a Y_b degree by degree, b of degree 1
    const real* coefficients;
    const real *edge_vec, *tangent;  // [n_edges, 3]
    real* gradient;
};
}

constexpr int MAX_HARMONICS = (MAX_DEGREE + 1) * (MAX_DEGREE + 1);
constexpr real PI = 3.14159265358979323846;

// A function's value and slope at x; `along` is the function of a number near x.
struct Sloped {
    Vector value, slope;
};
inline Value along(Sloped f, Value) { return {f.value}; }
inline Dual along(Sloped f, Dual x) { return {f.value, f.slope * x.v[1]}; }

// u(x) of polynomial_envelope in equicat/networks/layers.py.
inline Sloped envelope(Vector x, int p) {
    const Vector rest = x < 1 ? 1 - x : Vector{};
    Vector total = Vector{} + real(p * (p + 1) / 2), power = Vector{} + real(-p * (p + 1) * (p + 2) / 2);
    for (int k = p - 2; k >= 0; k--) total = total * x + real((k + 1) * (k + 2) / 2);
    for (int k = 1; k < p; k++) power *= x;
    return {rest * rest * rest * total, power * rest * rest};
}

// sin(w x) / (π x) u(x).
inline Sloped bessel(real w, Vector x, Sloped u) {
    Vector sine, cosine;
    sine_cosine(x * w, sine, cosine);
    const Vector inverse = 1 / x, f = inverse * (1 / PI);
    return {sine * f * u.value, f * ((cosine * w - sine * inverse) * u.value + sine * u.slope)};
}

// The derivative of `bessel` by w, cos(w x) u(x) / π.
inline Sloped bessel_by_frequency(real w, Vector x, Sloped u) {
    Vector sine, cosine;
    sine_cosine(x * w, sine, cosine);
    return {cosine * u.value * (1 / PI), (cosine * u.slope - sine * u.value * w) * (1 / PI)};
}

// (1 − cos 2π(x − start) / length)² / 4 on [start, start + length].
inline Sloped spline(Vector x, real start, real length) {
    Vector sine, cosine, inside = x - start;
    inside = inside < 0 ? Vector{} : (inside > length ? Vector{} + length : inside);
    sine_cosine(inside * (2 * PI / length), sine, cosine);
    return {(1 - cosine) * (1 - cosine) * real(0.25), (1 - cosine) * sine * (PI / length)};
}

// Geometry of LANES pairs.
template <int D> struct Pairs {
    Num<D> unit[3], x;  // x: the distance in units of the cutoff
    Vector inverse_r, inverse_cutoff;
};

// The geometry of `count` edges, which are edge(lane) with pairs of elements pair[lane]; unused lanes get a unit vector.
template <int D, class F> Pairs<D> pairs_at(const Geometry& g, int count, F edge, const int* pair) {
    real lanes[3 + 3 * (D - 1)][LANES] = {}, inverse_cutoff[LANES], r[LANES];
    for (int lane = 0; lane < LANES; lane++) lanes[0][lane] = inverse_cutoff[lane] = 1;
    for (int lane = 0; lane < count; lane++) {
        for (int k = 0; k < 3; k++) lanes[k][lane] = g.edge_vec[3 * edge(lane) + k];
        for (int k = 0; k < 3 * (D - 1); k++) lanes[3 + k][lane] = g.tangent[3 * edge(lane) + k];
        inverse_cutoff[lane] = g.inverse_cutoff[pair[lane]];
    }
    Pairs<D> out;
    Vector square = {};
    for (int k = 0; k < 3; k++) square += load(lanes[k]) * load(lanes[k]);
    store(r, square);
    for (real& x : r) x = std::sqrt(x);
    out.inverse_cutoff = load(inverse_cutoff), out.inverse_r = 1 / load(r);
    for (int k = 0; k < 3; k++) out.unit[k].v[0] = load(lanes[k]) * out.inverse_r;
    out.x.v[0] = load(r) * out.inverse_cutoff;
    if constexpr (D == 2) {
        Vector along_unit = {};
        for (int k = 0; k < 3; k++) along_unit += load(lanes[3 + k]) * out.unit[k].v[0];
        for (int k = 0; k < 3; k++)
            out.unit[k].v[1] = (load(lanes[3 + k]) - out.unit[k].v[0] * along_unit) * out.inverse_r;
        out.x.v[1] = along_unit * out.inverse_cutoff;
    }
    return out;
}

// Whether one vector is minus the other up to rounding (other periodic images of an atom are further away).
inline bool opposite(const real* a, const real* b) {
    constexpr real tolerance = 1000 * std::numeric_limits<real>::epsilon();  // Å
    return std::abs(a[0] + b[0]) < tolerance && std::abs(a[1] + b[1]) < tolerance && std::abs(a[2] + b[2]) < tolerance;
}

template <int D> void harmonics(const Geometry& g, int l_max, const Num<D>* unit, Num<D>* y) {
    y[0] = {};
    y[0].v[0] += 1;
    for (int k = 0; k < 3 && l_max; k++) y[1 + k] = unit[k] * (Vector{} + real(1.7320508075688772935));
    for (int lm = 4; lm < (l_max + 1) * (l_max + 1); lm++) y[lm] = {};
    for (int t = 0; t < g.n_terms; t++) {
        const int64_t* term = g.terms + 3 * t;
        y[term[0]] += y[term[1]] * y[term[2]] * (Vector{} + g.coefficients[t]);
    }
}

// Writes the derivative by the unit vector, unit_bar; overwrites y_bar.
inline void harmonics_backward(const Geometry& g, int l_max, const Value* y, Vector* y_bar, Vector* unit_bar) {
    for (int t = g.n_terms - 1; t >= 0; t--) {
        const int64_t* term = g.terms + 3 * t;
        const Vector bar = y_bar[term[0]] * g.coefficients[t];
        y_bar[term[1]] += bar * y[term[2]].v[0];
        y_bar[term[2]] += bar * y[term[1]].v[0];
    }
    for (int k = 0; k < 3; k++) unit_bar[k] = l_max ? y_bar[1 + k] * real(1.7320508075688772935) : Vector{};
}
