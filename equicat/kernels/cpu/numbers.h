// Vectors of the processor, dual numbers made of them, and the functions that a network needs of both.
//
// A dual number a + ε b with ε² = 0 carries a value and its derivative in one direction. A gradient that is computed
// with dual numbers yields, in its ε part, the derivative of the gradient in that direction: what training on forces
// needs. So the code of a gradient, written once for Num<D>, serves inference (D = 1) and training (D = 2).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#ifndef REAL
#define REAL float
#endif
using real = REAL;

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64, MICRO_ROWS = 12;
#elif defined(__AVX__)
constexpr int VECTOR_BYTES = 32, MICRO_ROWS = 6;
#else
constexpr int VECTOR_BYTES = 16, MICRO_ROWS = 6;
#endif
constexpr int LANES = VECTOR_BYTES / sizeof(real);
constexpr int BLOCK = 64 / sizeof(real);  // columns of matrices come in multiples of this
constexpr int BLOCK_VECTORS = BLOCK / LANES;
constexpr int MAX_DEGREE = 4;  // of harmonics; the same in build.py

typedef real Vector __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(real)), may_alias));

inline Vector load(const real* p) { return *reinterpret_cast<const Vector*>(p); }
inline void store(real* p, Vector x) { *reinterpret_cast<Vector*>(p) = x; }
inline real sum(Vector x) {
    // Halves added to one another first: adding lanes in a row waits for each.
    typedef real Half __attribute__((vector_size(VECTOR_BYTES / 2)));
    Half halves[2];
    std::memcpy(halves, &x, VECTOR_BYTES);
    const Half half = halves[0] + halves[1];
    real total = half[0];
    for (int k = 1; k < LANES / 2; k++) total += half[k];
    return total;
}

// Integers as wide as `real`, to build powers of two from.
template <class T> struct Bits;
template <> struct Bits<float> {
    using type = int32_t;
    static constexpr int mantissa = 23, bias = 127, terms = 7, sine_terms = 5;
    static constexpr float limit = 87, magic = 12582912.0f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
    static constexpr float quarter[] = {1.5703125f, 4.837512969970703125e-4f, 7.54978995489188216e-8f};
};
template <> struct Bits<double> {
    using type = int64_t;
    static constexpr int mantissa = 52, bias = 1023, terms = 13, sine_terms = 9;
    static constexpr double limit = 708, magic = 6755399441055744.0, ln2_high = 0.693145751953125,
                            ln2_low = 1.42860682030941723212e-6;
    static constexpr double quarter[] = {1.57079625129699707031, 7.54978941586159635336e-8, 5.39030285815811905290e-15};
};
typedef Bits<real>::type Integers __attribute__((vector_size(VECTOR_BYTES)));

constexpr real over_factorial(int k) {
    double out = 1;
    for (; k > 0; k--) out /= k;
    return out;
}

// eˣ = 2ⁿ eʳ with |r| ≤ ln 2 / 2 and the power series of eʳ, to rounding; x is kept within the range of `real`.
inline Vector exponential(Vector x) {
    using B = Bits<real>;
    x = x < -B::limit ? Vector{} - B::limit : (x > B::limit ? Vector{} + B::limit : x);
    const Vector n = (x * real(1.44269504088896340736) + B::magic) - B::magic;
    const Vector r = (x - n * B::ln2_high) - n * B::ln2_low;
    Vector total = Vector{} + over_factorial(B::terms);
#pragma GCC unroll 16
    for (int k = B::terms - 1; k >= 0; k--) total = total * r + over_factorial(k);
    const Integers power = (__builtin_convertvector(n, Integers) + B::bias) << B::mantissa;
    return total * (Vector)power;
}

// sin x and cos x: x = n π/2 + r with |r| ≤ π/4, and the power series in r.
inline void sine_cosine(Vector x, Vector& sine, Vector& cosine) {
    using B = Bits<real>;
    const Vector n = (x * real(0.63661977236758134308) + B::magic) - B::magic;
    const Vector r = ((x - n * B::quarter[0]) - n * B::quarter[1]) - n * B::quarter[2], minus = -r * r;
    Vector s = Vector{} + over_factorial(2 * B::sine_terms + 1), c = Vector{} + over_factorial(2 * B::sine_terms);
#pragma GCC unroll 16
    for (int k = B::sine_terms - 1; k >= 0; k--) {
        s = s * minus + over_factorial(2 * k + 1);
        c = c * minus + over_factorial(2 * k);
    }
    s *= r;
    const Integers turns = __builtin_convertvector(n, Integers);
    const auto odd = (turns & 1) != 0;
    sine = odd ? c : s, cosine = odd ? s : c;
    sine = (turns & 2) != 0 ? -sine : sine, cosine = ((turns + 1) & 2) != 0 ? -cosine : cosine;
}

template <int D> struct Num {
    Vector v[D];
};
using Value = Num<1>;
using Dual = Num<2>;

inline Value operator*(Value a, Value b) { return {a.v[0] * b.v[0]}; }
inline Dual operator*(Dual a, Dual b) { return {a.v[0] * b.v[0], a.v[0] * b.v[1] + a.v[1] * b.v[0]}; }
template <int D> inline Num<D> operator*(Num<D> a, Vector b) {
    for (int d = 0; d < D; d++) a.v[d] *= b;
    return a;
}
template <int D> inline Num<D> operator+(Num<D> a, Num<D> b) {
    for (int d = 0; d < D; d++) a.v[d] += b.v[d];
    return a;
}
template <int D> inline Num<D>& operator+=(Num<D>& a, Num<D> b) { return a = a + b; }

// Values lie in one plane of memory, their ε parts in the next, `plane` further.
template <int D> inline Num<D> load(const real* p, long plane) {
    Num<D> out;
    for (int d = 0; d < D; d++) out.v[d] = load(p + d * plane);
    return out;
}
template <int D> inline void store(real* p, long plane, Num<D> x) {
    for (int d = 0; d < D; d++) store(p + d * plane, x.v[d]);
}
template <int D> inline void add(real* p, long plane, Num<D> x) {
    for (int d = 0; d < D; d++) store(p + d * plane, load(p + d * plane) + x.v[d]);
}
// One number in all lanes.
template <int D> inline Num<D> spread(const real* p, long plane) {
    Num<D> out;
    for (int d = 0; d < D; d++) out.v[d] = Vector{} + p[d * plane];
    return out;
}

// Returns silu(z) = z σ(z) and writes its slope silu'(z) over z.
inline Value silu(Value& z) {
    const Vector s = 1 / (1 + exponential(-z.v[0])), h = z.v[0] * s;
    z = {s + h * (1 - s)};
    return {h};
}
inline Dual silu(Dual& z) {
    const Vector s = 1 / (1 + exponential(-z.v[0])), h = z.v[0] * s, slope = s + h * (1 - s);
    const Dual out{h, slope * z.v[1]};
    z = {slope, s * (1 - s) * (2 + z.v[0] * (1 - 2 * s)) * z.v[1]};
    return out;
}
