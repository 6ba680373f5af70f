// A step of many relaxations beside the model: the direction of L-BFGS (equicat/relaxation/lbfgs.py), and the
// pairs within the cutoff out of a longer list (equicat/relaxation/pairs.py).
//
// A system's numbers are the same, to the last bit, whatever other systems and however many threads there are.
#include "numbers.h"
#include "threads.h"

extern "C" {
struct Direction {
    int64_t n_systems, n_pairs, row, n_threads;  // row: coordinates of all systems, the length of a row of the history
    const int64_t* first;                        // [n_systems + 1], where the coordinates of each system begin
    const real *steps, *changes, *rho, *forces;  // [n_pairs, row] s and y, newest first; [n_pairs, n_systems]; [row]
    real* direction;                             // [row], written
    double alpha;
};
struct Near {
    int64_t n_edges, n_threads;
    const int64_t *center, *neighbor;
    const int32_t* shift;                        // [n_edges, 3]
    const real *positions, *shift_vectors;       // [n_atoms, 3], [n_edges, 3]
    double cutoff;
    bool* near;                                  // [n_edges], written by `count_near`
    int64_t* kept;                               // [n_threads + 1], likewise: pairs that are kept before each part
    int64_t *new_center, *new_neighbor;          // written by `take_near`, as the next two
    int32_t* new_shift;
    real* vectors;
};
}

#if PASS == 1
extern "C" const int64_t structure_sizes[] = {sizeof(Direction), sizeof(Near)};

namespace {

real dot(const real* a, const real* b, int64_t n) {
    Vector total{};
    int64_t k = 0;
    for (; k + LANES <= n; k += LANES) total += load(a + k) * load(b + k);
    real rest = 0;
    for (; k < n; k++) rest += a[k] * b[k];
    return sum(total) + rest;
}

void add(real factor, const real* a, real* to, int64_t n) {
    int64_t k = 0;
    for (; k + LANES <= n; k += LANES) store(to + k, load(to + k) + factor * load(a + k));
    for (; k < n; k++) to[k] += factor * a[k];
}

// Nocedal and Wright, Numerical Optimization, algorithm 7.4: the direction is -H g, and g = -forces.
void recursion(const Direction& d, int64_t system, real* a) {
    const int64_t start = d.first[system], n = d.first[system + 1] - start;
    real* q = d.direction + start;
    std::copy_n(d.forces + start, n, q);  // minus the algorithm's q, for -H g is asked
    for (int64_t k = 0; k < d.n_pairs; k++) {
        a[k] = d.rho[k * d.n_systems + system] * dot(d.steps + k * d.row + start, q, n);
        add(-a[k], d.changes + k * d.row + start, q, n);
    }
    for (int64_t k = 0; k < n; k++) q[k] /= d.alpha;
    for (int64_t k = d.n_pairs; k-- > 0;) {
        const real b = d.rho[k * d.n_systems + system] * dot(d.changes + k * d.row + start, q, n);
        add(a[k] - b, d.steps + k * d.row + start, q, n);
    }
}

// r_ij of pair e, and its square.
real vector_of(const Near& a, int64_t e, real* v) {
    const real *from = a.positions + 3 * a.center[e], *to = a.positions + 3 * a.neighbor[e];
    for (int x = 0; x < 3; x++) v[x] = (to[x] - from[x]) + a.shift_vectors[3 * e + x];
    return v[0] * v[0] + v[1] * v[1] + v[2] * v[2];
}

// f(pair) for the pairs of part t.
template <class F> void for_pairs(const Near& a, int64_t t, F f) {
    for (int64_t e = a.n_edges * t / a.n_threads; e < a.n_edges * (t + 1) / a.n_threads; e++) f(e);
}

}  // namespace

extern "C" int lbfgs_direction(const Direction* d, char* message) {
    return guarded(message, [&] {
        in_threads(d->n_threads, [&](int t) {
            std::vector<real> a(d->n_pairs);
            for (int64_t system = t; system < d->n_systems; system += d->n_threads) recursion(*d, system, a.data());
        });
    });
}

extern "C" int count_near(const Near* a, char* message) {
    return guarded(message, [&] {
        a->kept[0] = 0;
        in_threads(a->n_threads, [&](int t) {
            int64_t n = 0;
            for_pairs(*a, t, [&](int64_t e) {
                real v[3];
                n += a->near[e] = vector_of(*a, e, v) < a->cutoff * a->cutoff;
            });
            a->kept[t + 1] = n;
        });
        for (int64_t t = 0; t < a->n_threads; t++) a->kept[t + 1] += a->kept[t];
    });
}

extern "C" int take_near(const Near* a, char* message) {
    return guarded(message, [&] {
        in_threads(a->n_threads, [&](int t) {
            int64_t k = a->kept[t];
            for_pairs(*a, t, [&](int64_t e) {
                if (!a->near[e]) return;
                vector_of(*a, e, a->vectors + 3 * k);
                a->new_center[k] = a->center[e], a->new_neighbor[k] = a->neighbor[e];
                std::copy_n(a->shift + 3 * e, 3, a->new_shift + 3 * k++);
            });
        });
    });
}
#endif
