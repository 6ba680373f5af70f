// Pairs of atoms within a cutoff, periodic images included, by sorting atoms into bins.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

#include "threads.h"

using Vec = std::array<double, 3>;
using Mat = std::array<Vec, 3>;

inline Vec cross(const Vec& a, const Vec& b) {
    return {a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]};
}
inline double dot(const Vec& a, const Vec& b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }
inline double length(const Vec& a) { return std::sqrt(dot(a, a)); }

// Lattice vectors, with directions in which nothing repeats replaced by unit vectors at right angles to the others.
inline Mat complete_lattice(const double* cell, const std::array<bool, 3>& periodic) {
    Mat a{};
    for (int k = 0; k < 3; k++)
        if (periodic[k]) a[k] = {cell[3 * k], cell[3 * k + 1], cell[3 * k + 2]};
    for (int k = 0; k < 3; k++) {
        if (periodic[k]) continue;
        // A vector at right angles to those that are there: their product, or one with a coordinate axis.
        std::vector<Vec> there;
        for (const Vec& v : a)
            if (length(v) > 0) there.push_back(v);
        Vec best = {1, 0, 0};
        if (there.size() == 2) best = cross(there[0], there[1]);
        if (there.size() == 1) {
            best = {};
            for (const Vec& axis : {Vec{1, 0, 0}, Vec{0, 1, 0}, Vec{0, 0, 1}})
                if (const Vec v = cross(there[0], axis); length(v) > length(best)) best = v;
        }
        const double size = length(best);
        require(size > 0, "the lattice vectors of the periodic directions are zero or parallel");
        for (int c = 0; c < 3; c++) a[k][c] = best[c] / size;
    }
    return a;
}

// Pairs in both directions, sorted by centre.
struct PairList {
    std::vector<int64_t> first{0}, neighbor;
    std::vector<double> vectors;  // [n_pairs, 3]
};

class Bins {
  public:
    Bins(int64_t n_atoms, const double* positions, const double* cell, const std::array<bool, 3>& periodic,
         double cutoff)
        : n_atoms(n_atoms), cutoff(cutoff), periodic(periodic), lattice(complete_lattice(cell, periodic)) {
        const Mat& a = lattice;
        const Vec area[3] = {cross(a[1], a[2]), cross(a[2], a[0]), cross(a[0], a[1])};
        const double volume = dot(a[0], area[0]);
        require(std::abs(volume) > 1e-3, "the cell has no volume");
        for (int k = 0; k < 3; k++) {
            for (int c = 0; c < 3; c++) inverse[k][c] = area[k][c] / volume;
            height[k] = std::abs(volume) / length(area[k]);
            require(!periodic[k] || height[k] > 0.01 * cutoff, "the cell is thinner than a hundredth of the cutoff");
        }
        wrap(positions);
        choose_sizes();
        sort();
    }

    PairList pairs() const {
        PairList found;
        for (int64_t i = 0; i < n_atoms; i++) {
            add_pairs_of(i, found);
            found.first.push_back(found.neighbor.size());
        }
        return found;
    }

  private:
    const int64_t n_atoms;
    const double cutoff;
    const std::array<bool, 3> periodic;
    const Mat lattice;
    Mat inverse{};                            // fractional coordinate k of r is inverse[k] · r
    Vec height{};                             // distances between opposite faces of the cell
    std::vector<Vec> inside, fractional;      // positions, moved into the cell along periodic directions
    Vec low{}, width{};                       // fractional coordinate where the bins begin, and the width of one
    std::array<int64_t, 3> n_bins{}, reach{};  // reach: bins to look at on each side
    std::vector<std::array<int64_t, 3>> bin;  // of each atom
    std::vector<int64_t> start, members;      // atoms by bin

    void wrap(const double* positions) {
        for (int64_t i = 0; i < n_atoms; i++) {
            Vec r{positions[3 * i], positions[3 * i + 1], positions[3 * i + 2]}, f;
            require(std::abs(r[0]) + std::abs(r[1]) + std::abs(r[2]) < 1e8, "a position is not a number below 1e8");
            for (int k = 0; k < 3; k++) f[k] = dot(inverse[k], r);
            for (int k = 0; k < 3; k++) {
                const double turns = periodic[k] ? std::floor(f[k]) : 0;
                f[k] -= turns;
                for (int c = 0; c < 3; c++) r[c] -= turns * lattice[k][c];
            }
            inside.push_back(r), fractional.push_back(f);
        }
    }

    // Bins are at least as wide as the cutoff, or as the cell where that is narrower.
    void choose_sizes() {
        for (int k = 0; k < 3; k++) {
            low[k] = 0, width[k] = 1;
            if (!periodic[k] && n_atoms) {
                const auto less = [k](const Vec& a, const Vec& b) { return a[k] < b[k]; };
                const auto [least, most] = std::minmax_element(fractional.begin(), fractional.end(), less);
                low[k] = (*least)[k], width[k] = std::max((*most)[k] - low[k], 1e-9);
            }
            n_bins[k] = std::max<int64_t>(1, std::floor(width[k] * height[k] / (cutoff * (1 + 1e-9))));
        }
        // No more bins than a few for each atom, however far apart they are.
        while (n_bins[0] * double(n_bins[1]) * n_bins[2] > 8.0 * n_atoms + 64) {
            int64_t& most = *std::max_element(n_bins.begin(), n_bins.end());
            most = (most + 1) / 2;
        }
        for (int k = 0; k < 3; k++) {
            width[k] /= n_bins[k];
            reach[k] = periodic[k] ? std::ceil(cutoff / (width[k] * height[k])) : 1;
        }
    }

    int64_t place(const std::array<int64_t, 3>& b) const { return (b[0] * n_bins[1] + b[1]) * n_bins[2] + b[2]; }

    void sort() {
        start.assign(n_bins[0] * n_bins[1] * n_bins[2] + 1, 0), members.resize(n_atoms);
        for (const Vec& f : fractional) {
            std::array<int64_t, 3> b;
            for (int k = 0; k < 3; k++)
                b[k] = std::clamp<int64_t>(std::floor((f[k] - low[k]) / width[k]), 0, n_bins[k] - 1);
            bin.push_back(b);
            start[place(b) + 1]++;
        }
        for (size_t k = 1; k < start.size(); k++) start[k] += start[k - 1];
        std::vector<int64_t> next(start.begin(), start.end() - 1);
        for (int64_t i = 0; i < n_atoms; i++) members[next[place(bin[i])]++] = i;
    }

    // f(bin, image) for each bin around that of an atom; images count how often the cell's edge is crossed.
    template <class F> void for_bins_around(int64_t i, F f) const {
        std::array<int64_t, 3> b, image, o;
        const auto along = [&](int k) {
            const int64_t at = bin[i][k] + o[k];
            if (!periodic[k] && (at < 0 || at >= n_bins[k])) return false;
            image[k] = at >= 0 ? at / n_bins[k] : -((-at + n_bins[k] - 1) / n_bins[k]);
            b[k] = at - image[k] * n_bins[k];
            return true;
        };
        for (o[0] = -reach[0]; o[0] <= reach[0]; o[0]++)
            if (along(0))
                for (o[1] = -reach[1]; o[1] <= reach[1]; o[1]++)
                    if (along(1))
                        for (o[2] = -reach[2]; o[2] <= reach[2]; o[2]++)
                            if (along(2)) f(place(b), image);
    }

    void add_pairs_of(int64_t i, PairList& found) const {
        for_bins_around(i, [&](int64_t place, const std::array<int64_t, 3>& image) {
            Vec away;  // from atom i to the image's origin
            for (int c = 0; c < 3; c++)
                away[c] = image[0] * lattice[0][c] + image[1] * lattice[1][c] + image[2] * lattice[2][c] - inside[i][c];
            const bool same_cell = !image[0] && !image[1] && !image[2];
            for (int64_t m = start[place]; m < start[place + 1]; m++) {
                const int64_t j = members[m];
                const Vec v{inside[j][0] + away[0], inside[j][1] + away[1], inside[j][2] + away[2]};
                if (!(dot(v, v) < cutoff * cutoff) || (same_cell && i == j)) continue;
                found.neighbor.push_back(j);
                found.vectors.insert(found.vectors.end(), v.begin(), v.end());
            }
        });
    }
};
