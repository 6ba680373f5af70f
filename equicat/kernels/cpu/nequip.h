// The flavour of the nequip-allegro package.
//
// Channels never mix in the tensor track, so that V of an edge is V⁰ times a product of matrices M of its centre. What
// an edge reads of it is one dot product with its harmonics (docs/decisions/0010).
#pragma once

#include "layers.h"

template <int D> class Nequip : public Layers<D> {
  protected:
    using Base = Layers<D>;
    using Hidden = typename Base::Hidden;
    using Base::l_max, Base::dims, Base::channels, Base::n, Base::n_centers;
    using Base::array, Base::complete;
    using Base::linear, Base::linear_part, Base::linear_backward, Base::linear_backward_part;
    using Base::activated, Base::activated_backward, Base::hidden_layers, Base::hidden_layers_backward;
    using Base::for_centers, Base::at, Base::add_at, Base::harmonic, Base::add_to_harmonic;
    using Base::numbers, Base::network, Base::n_layers, Base::layer, Base::n_weights, Base::two_body;
    using Base::env_weights, Base::env_weights_bar, Base::rows, Base::rows_bar;

    // Numbers of the matrices of an MLP. first: for the scalars of its layer; rest: between its hidden features; env: from
    // its last ones to the next environment's weights; shares: to what they add to the sums of later MLPs and the readout.
    struct MatrixNumbers {
        int first, env;
        Indices rest, shares;
    };
    std::vector<MatrixNumbers> of_mlp;  // 0: the two-body MLP, which has no `first`; k: the latent MLP of layer k - 1
    Array row_hidden;  // by row of the group
    std::vector<Array> sums, sums_bar, scalars, hidden, matrices, matrices_bar;
    std::vector<std::vector<Array>> chains;
    std::vector<Hidden> rest;
    Hidden two_body_hidden;

  public:
    static constexpr bool PATH_WEIGHTS = true;

    Nequip(const Call& call, const Weights& weights) : Base(call, weights) {
        for (int k = 0; k <= n_layers; k++) {
            MatrixNumbers number{};
            if (k > 0) number.first = numbers.one(), number.rest = numbers.several(network.n_latent - 1);
            if (k < n_layers) number.env = numbers.one();
            number.shares = numbers.several(n_layers + 1 - k);
            of_mlp.push_back(number);
        }
        this->head = numbers.several(call.n_matrices - numbers.next);
    }

  protected:
    void embed() {
        row_hidden = hidden_layers(this->embedded(), two_body, two_body_hidden);
        rows = {linear(row_hidden, of_mlp[0].env)};
        for (int share : of_mlp[0].shares) rows.push_back(linear_part(row_hidden, share));
    }

    Array embed_backward() {
        const std::vector<Array> of_sums(rows_bar.begin() + 1, rows_bar.end());
        return hidden_layers_backward(hidden_bar(row_hidden, 0, of_sums, rows_bar[0]), two_body, two_body_hidden);
    }

    void begin_layers(const std::vector<Array>& edges) {
        sums.assign(edges.begin() + 1, edges.end());
        for (auto* list : {&scalars, &hidden, &matrices}) list->assign(n_layers, Array{});
        chains.assign(n_layers, {}), rest.assign(n_layers, {});
    }

    std::vector<Array> end_layers() {
        std::vector<Array> bars = {env_weights_bar[0]};
        bars.insert(bars.end(), sums_bar.begin(), sums_bar.end());
        return bars;
    }

    void products(int k, const Array& m) {
        const MatrixNumbers& number = of_mlp[k + 1];
        matrices[k] = m;
        chain(k);
        scalars[k] = read_out(chains[k][0]);
        linear(scalars[k], number.first, sums[k], true), complete(sums[k]);
        hidden[k] = hidden_layers(activated(sums[k]), number.rest, rest[k]);
        if (k + 1 < n_layers) env_weights[k + 1] = linear(hidden[k], number.env);
        for (int r = k + 1; r <= n_layers; r++) linear(hidden[k], number.shares[r - k - 1], sums[r], true);
    }

    // Adds to geometry_bar, env_weights_bar[0] and matrices_bar.
    Array products_backward(int k) {
        const Array bar = hidden_bar(hidden[k], k + 1, sums_bar, env_weights_bar[k + 1]);
        sums_bar[k] = hidden_layers_backward(bar, of_mlp[k + 1].rest, rest[k]);
        activated_backward(sums[k], sums_bar[k]);
        const Array s_bar = linear_backward(scalars[k], of_mlp[k + 1].first, sums_bar[k]);
        chain_backward(k, read_out_backward(chains[k][0], s_bar));
        if (k) env_weights_bar[k] = array(n, n_weights());
        return matrices_bar[k];
    }

    Array features() {
        complete(sums[n_layers]);
        return network.features_silu ? activated(sums[n_layers]) : sums[n_layers];
    }

    void features_backward(const Array& bar) {
        sums_bar.assign(n_layers + 1, Array{}), matrices_bar.assign(n_layers, Array{});
        env_weights_bar[0] = array(n, env_weights[0].width, true);
        for (int k = 0; k < n_layers; k++) matrices_bar[k] = array(matrices[k].n, channels, true);
        sums_bar[n_layers] = bar;
        if (network.features_silu) activated_backward(sums[n_layers], bar);
    }

  private:
    int n_columns(int k) const { return layer(k).n_columns; }
    int n_rows(int k) const { return layer(k).n_rows / layer(k).n_columns; }  // of M as a matrix

    // s[j, u] = Σ_l w⁰[j, l, u] Σ_m Y[j, lm] G[lm, u].
    Array read_out(const Array& g) {
        const Array out = array(n, channels, true);
        for_centers([&](int c, int start, int stop) {
            for_degrees(l_max, [&](auto degree) {
                constexpr int l = degree, size = 2 * l + 1;
                for (int u = 0; u < channels; u += LANES) {
                    Num<D> column[size];
                    for (int m = 0; m < size; m++) column[m] = at(g, c * dims + l * l + m, u);
                    for (int j = start; j < stop; j++) {
                        Num<D> dot = {};
                        for (int m = 0; m < size; m++) dot += harmonic(j, l * l + m) * column[m];
                        add_at(out, j, u, at(env_weights[0], j, n_weights() + l * channels + u) * dot);
                    }
                }
            });
        });
        return out;
    }

    // Adds to geometry_bar and env_weights_bar[0], and returns the derivative by G.
    Array read_out_backward(const Array& g, const Array& bar) {
        const Array g_bar = array(n_centers * dims, channels, true);
        for_centers([&](int c, int start, int stop) {
            for_degrees(l_max, [&](auto degree) {
                constexpr int l = degree, size = 2 * l + 1;
                for (int j = start; j < stop; j++) {
                    Num<D> to_sh[size] = {}, y[size];
                    for (int m = 0; m < size; m++) y[m] = harmonic(j, l * l + m);
                    for (int u = 0; u < channels; u += LANES) {
                        const Num<D> s_bar = at(bar, j, u), w = at(env_weights[0], j, n_weights() + l * channels + u) * s_bar;
                        Num<D> dot = {};
                        for (int m = 0; m < size; m++) {
                            const int row = c * dims + l * l + m;
                            const Num<D> column = at(g, row, u);
                            dot += y[m] * column;
                            to_sh[m] += w * column;
                            add_at(g_bar, row, u, y[m] * w);
                        }
                        add_at(env_weights_bar[0], j, n_weights() + l * channels + u, s_bar * dot);
                    }
                    for (int m = 0; m < size; m++) add_to_harmonic(j, l * l + m, to_sh[m]);
                }
            });
        });
        return g_bar;
    }

    // g_k = the scalar column of M_k, g_j = M_j g_{j+1}; the last one, g_0, is what edges of layer k read.
    void chain(int k) {
        std::vector<Array>& g = chains[k];
        g.assign(k + 1, Array{});
        for (int j = k; j >= 0; j--) {
            const int rows = n_rows(j), columns = n_columns(j);
            g[j] = array(n_centers * rows, channels, true);
            for (int r = 0; r < n_centers * rows; r++)
                for (int b = 0; b < (j == k ? 1 : columns); b++)
                    for (int u = 0; u < channels; u += LANES) {
                        const Num<D> x = at(matrices[j], r * columns + b, u);
                        add_at(g[j], r, u, j == k ? x : x * at(g[j + 1], r / rows * columns + b, u));
                    }
        }
    }

    // Adds to matrices_bar of layers 0 … k.
    void chain_backward(int k, Array bar) {
        for (int j = 0; j <= k; j++) {
            const int rows = n_rows(j), columns = n_columns(j);
            const Array next_bar = j < k ? array(n_centers * columns, channels, true) : Array{};
            for (int r = 0; r < n_centers * rows; r++)
                for (int b = 0; b < (j == k ? 1 : columns); b++)
                    for (int u = 0; u < channels; u += LANES) {
                        const int row = r * columns + b, next = r / rows * columns + b;
                        const Num<D> x = at(bar, r, u);
                        add_at(matrices_bar[j], row, u, j == k ? x : x * at(chains[k][j + 1], next, u));
                        if (j < k) add_at(next_bar, next, u, x * at(matrices[j], row, u));
                    }
            bar = next_bar;
        }
    }

    // The derivative by the last hidden features h of MLP k: the sum over all maps that read them.
    Array hidden_bar(const Array& h, int k, const std::vector<Array>& sums_bar, const Array& env_bar) {
        const Indices& shares = of_mlp[k].shares;
        const Array bar = linear_backward_part(h, shares[0], sums_bar[k]);
        for (size_t r = 1; r < shares.size(); r++) linear_backward(h, shares[r], sums_bar[k + r], bar, true);
        if (k < n_layers) linear_backward(h, of_mlp[k].env, env_bar, bar, true);
        complete(bar);
        return bar;
    }
};
