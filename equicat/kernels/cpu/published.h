// The flavour of Musaelian et al. (2023).
//
// Tensor features V of an edge are arrays by irrep, rows (edge, component). A layer contracts the environment with the
// coupling coefficients once a centre; each edge then multiplies its V with the small matrix of its centre, column by
// column, and a matrix product mixes paths and channels.
#pragma once

#include "layers.h"

template <int D> class Published : public Layers<D> {
  protected:
    using Base = Layers<D>;
    using Hidden = typename Base::Hidden;
    using Base::call, Base::l_max, Base::dims, Base::channels, Base::n, Base::n_centers;
    using Base::geometry, Base::geometry_bar;
    using Base::array, Base::complete;
    using Base::linear, Base::linear_part, Base::linear_backward, Base::linear_backward_part;
    using Base::activated, Base::activated_backward, Base::hidden_layers, Base::hidden_layers_backward;
    using Base::for_centers, Base::at, Base::add_at, Base::set_at, Base::harmonic, Base::add_to_harmonic;
    using Base::numbers, Base::network, Base::n_layers, Base::layer, Base::n_weights, Base::two_body;
    using Base::env_weights, Base::env_weights_bar, Base::rows, Base::rows_bar;

    // Weights of the residual update x + u MLP / 2, normalised.
    static constexpr real CHANGE = 0.44721359549995793928, KEEP = 2 * CHANGE;

    // Numbers of a layer's matrices. env, env_rest: of the map from x to the environment's weights; from_x, from_scalars:
    // the first of the latent MLP, in two pieces; rest: its others; mix: one for each output that is passed on.
    struct MatrixNumbers {
        int env, from_x, from_scalars;
        Indices env_rest, rest, mix;
    };
    // z → silu → W₁ → silu → W₂ …, from and to numbers before the nonlinearity.
    struct MLP {
        Array slope;  // of the first nonlinearity
        Hidden hidden;
    };
    // A layer's input that is made of scalar features x alone: the environment's weights, and the share z of x in the
    // first sum of the latent MLP.
    struct LayerInput {
        Array x, weights, z;
        MLP env_mlp;
    };
    // A layer's arrays that its reverse reads again; y comes out of the latent MLP.
    struct LayerState {
        LayerInput input;
        Array y, m;
        std::vector<Array> v, products;  // by irrep that enters, by output
        MLP latent;
    };
    std::vector<MatrixNumbers> of_layer;
    std::vector<LayerState> saved;
    MLP two_body_mlp;
    Array two_body_out;        // by row of the group
    LayerInput row_input;      // of the first layer, by row of the group
    Array x;                   // after the last layer
    LayerInput bar;            // derivatives by a layer's input
    std::vector<Array> v_bar;  // derivatives by its tensor features

  public:
    static constexpr bool PATH_WEIGHTS = false;

    Published(const Call& call, const Weights& weights) : Base(call, weights) {
        for (int k = 0; k < n_layers; k++) {
            MatrixNumbers number{};
            number.env = numbers.one(), number.env_rest = numbers.several(network.n_env - 1);
            number.from_x = numbers.one(), number.from_scalars = numbers.one();
            number.rest = numbers.several(network.n_latent - 1), number.mix = numbers.several(layer(k).n_mixed);
            of_layer.push_back(number);
        }
        this->head = numbers.several(call.n_matrices - numbers.next);
    }

  protected:
    void embed() {
        two_body_out = mlp(this->embedded(), two_body, two_body_mlp);
        row_input = read(updated(nullptr, two_body_out, this->row_geometry, 0), of_layer[0]);
        rows = {row_input.weights, row_input.x, row_input.z};
    }

    Array embed_backward() {
        const LayerInput row_bar{rows_bar[1], rows_bar[0], rows_bar[2], {}};
        read_backward(row_input, of_layer[0], row_bar);
        const Array y_bar =
            updated_backward(two_body_out, row_bar.x, true, this->row_geometry, this->row_geometry_bar, 0);
        return mlp_backward(y_bar, two_body, two_body_mlp);
    }

    void begin_layers(const std::vector<Array>& edges) {
        saved.assign(n_layers, LayerState{});
        saved[0].input = {edges[1], edges[0], edges[2], {}};
        saved[0].v = first_tensors(edges[0]);
    }

    std::vector<Array> end_layers() {
        first_tensors_backward(env_weights[0], v_bar, bar.weights);
        return {bar.weights, bar.x, bar.z};
    }

    void products(int k, const Array& m) {
        const Layer& sizes = layer(k);
        LayerState& s = saved[k];
        s.m = m;
        std::vector<Array> v;
        for (int o = 0; o < sizes.n_outputs; o++) {
            s.products.push_back(tensor_products(sizes, o, s.v, m));
            if (mixed(sizes, o)) v.push_back(linear(s.products[o], of_layer[k].mix[v.size()]));
        }
        const Array& z = s.input.z;
        linear(s.products[0], of_layer[k].from_scalars, z, true), complete(z);
        s.y = mlp(z, of_layer[k].rest, s.latent);
        x = updated(&s.input.x, s.y, geometry, dims);
        if (k + 1 == n_layers) return;
        saved[k + 1].v = v, saved[k + 1].input = read(x, of_layer[k + 1]);
        env_weights[k + 1] = saved[k + 1].input.weights;
    }

    // Adds to geometry_bar; turns bar and v_bar into those of this layer, but for bar.weights, which it makes room for.
    Array products_backward(int k) {
        const Layer& sizes = layer(k);
        const LayerState& s = saved[k];
        if (k + 1 < n_layers) read_backward(saved[k + 1].input, of_layer[k + 1], bar);
        const Array y_bar = updated_backward(s.y, bar.x, false, geometry, geometry_bar, dims);
        bar.z = mlp_backward(y_bar, of_layer[k].rest, s.latent);
        const std::vector<Array> passed_on = std::move(v_bar);
        v_bar.clear();
        for (int i = 0; i < sizes.n_irreps; i++) v_bar.push_back(array(n * sizes.dims[i], channels, true));
        const Array m_bar = array(n_centers * sizes.n_rows, channels);
        for (int o = 0, i = 0; o < sizes.n_outputs; o++) {
            const Arena::Mark before = this->memory.mark();
            Array from;
            if (mixed(sizes, o))  // of all but the scalar one the values, sums over `channels`, are not on the reel
                from = linear_backward_part(s.products[o], of_layer[k].mix[i], passed_on[i], !o), i++;
            else
                from = array(s.products[o].n, s.products[o].width, true);
            if (!o) linear_backward(s.products[0], of_layer[k].from_scalars, bar.z, from, true), complete(from);
            tensor_products_backward(sizes, o, s.v, s.m, from, v_bar, m_bar);
            this->memory.release(before);  // the next output's derivatives take their place in the cache
        }
        env_weights_bar[k] = bar.weights = array(n, env_weights[k].width);
        return m_bar;
    }

    Array features() const { return x; }
    void features_backward(const Array& features_bar) { bar.x = features_bar; }

  private:
    // ---- scalar features ------------------------------------------------------------------------------------------

    bool mixed(const Layer& layer, int output) const { return output >= layer.n_outputs - layer.n_mixed; }

    Array mlp(Array z, const Indices& layers, MLP& saved) {
        saved.slope = z;
        if (layers.empty()) return z;
        const Indices inner(layers.begin(), layers.end() - 1);
        return linear(hidden_layers(activated(z), inner, saved.hidden), layers.back());
    }

    Array mlp_backward(Array bar, const Indices& layers, const MLP& saved) {
        if (layers.empty()) return bar;
        const Indices inner(layers.begin(), layers.end() - 1);
        bar = hidden_layers_backward(linear_backward(saved.hidden.h.back(), layers.back(), bar), inner, saved.hidden);
        activated_backward(saved.slope, bar);
        return bar;
    }

    LayerInput read(const Array& x, const MatrixNumbers& number) {
        LayerInput r;
        r.x = x;
        r.weights = mlp(linear(x, number.env), number.env_rest, r.env_mlp);
        r.z = linear_part(x, number.from_x);
        return r;
    }
    // Adds the derivative by the scalar features to bar.x.
    void read_backward(const LayerInput& r, const MatrixNumbers& number, const LayerInput& bar) {
        linear_backward(r.x, number.from_x, bar.z, bar.x, true);
        linear_backward(r.x, number.env, mlp_backward(bar.weights, number.env_rest, r.env_mlp), bar.x, true);
        complete(bar.x);
    }

    // keep x + change u y, or u y without x, with the envelope u in row `what` of `geometry`.
    Array updated(const Array* x, const Array& y, const Array& geometry, int what) {
        const Array out = array(y.n, y.width);
        const Vector keep = Vector{} + KEEP, change = Vector{} + (x ? CHANGE : 1);
        for (int j = 0; j < y.n; j++) {
            const Num<D> u = this->along_edges(geometry, what, j) * change;
            for (int f = 0; f < y.width; f += LANES) {
                Num<D> total = at(y, j, f) * u;
                if (x) total += at(*x, j, f) * keep;
                set_at(out, j, f, total);
            }
        }
        return out;
    }

    // Returns the derivative by y, adds that by u to geometry_bar, and turns `bar` into the derivative by x.
    Array updated_backward(const Array& y, const Array& bar, bool first, const Array& geometry,
                           const Array& geometry_bar, int what) {
        const Array y_bar = array(y.n, y.width);
        const Vector keep = Vector{} + KEEP, change = Vector{} + (first ? 1 : CHANGE);
        for (int j = 0; j < y.n; j++) {
            const Num<D> u = this->along_edges(geometry, what, j) * change;
            Num<D> to_u = {};
            for (int f = 0; f < y.width; f += LANES) {
                const Num<D> b = at(bar, j, f);
                set_at(y_bar, j, f, b * u);
                to_u += b * at(y, j, f) * change;
                set_at(bar, j, f, b * keep);
            }
            this->add_along_edges(geometry_bar, what, j, to_u);
        }
        return y_bar;
    }

    // ---- the tensor track -----------------------------------------------------------------------------------------

    // V⁰[l][j, m, u] = w[j, l, u] Y[j, lm], with w behind the weights of the first environment.
    std::vector<Array> first_tensors(const Array& weights) {
        std::vector<Array> out(l_max + 1);
        for (int l = 0; l <= l_max; l++) {
            const int size = 2 * l + 1;
            out[l] = array(n * size, channels);
            for (int j = 0; j < n; j++)
                for (int m = 0; m < size; m++) {
                    const Num<D> y = harmonic(j, l * l + m);
                    for (int u = 0; u < channels; u += LANES)
                        set_at(out[l], j * size + m, u, at(weights, j, n_weights() + l * channels + u) * y);
                }
        }
        return out;
    }

    void first_tensors_backward(const Array& weights, const std::vector<Array>& v_bar, const Array& w_bar) {
        for (int l = 0; l <= l_max; l++) {
            const int size = 2 * l + 1;
            for (int j = 0; j < n; j++) {
                for (int u = 0; u < channels; u += LANES) set_at(w_bar, j, n_weights() + l * channels + u, Num<D>{});
                for (int m = 0; m < size; m++) {
                    const Num<D> y = harmonic(j, l * l + m);
                    Num<D> to_y = {};
                    for (int u = 0; u < channels; u += LANES) {
                        const int column = n_weights() + l * channels + u;
                        const Num<D> bar = at(v_bar[l], j * size + m, u);
                        add_at(w_bar, j, column, bar * y);
                        to_y += bar * at(weights, j, column);
                    }
                    add_to_harmonic(j, l * l + m, to_y);
                }
            }
        }
    }

    // Paths of a centre to one output: their matrices M and the rows of V and of the product that they read and write.
    struct PathOfCenter {
        int start, stop;     // edges of the centre
        int n_components;    // of the output: row (edge, component) of the product
        int from;            // first channel of the path in the product
        int irrep;           // of V
        int m_row, n_paths;  // the centre's first row of M; paths of the output
        const Column* columns;
        // The first row of M that makes a component.
        int row(int component) const { return m_row + columns[component * n_paths].row; }
    };
    // f(degree as a constant, path) for every centre and each path to output o; V has 2 degree + 1 components. All that
    // a path reads and writes of a few channels is small enough for the L1 cache. Loops over components of V are unrolled,
    // or the compiler would keep their sums in memory.
    template <class F> void for_paths(const Layer& layer, int o, F f) {
        const Output& out = layer.outputs[o];
        for_centers([&](int c, int start, int stop) {
            for (int p = 0; p < out.n_paths; p++) {
                const Column* columns = layer.columns + out.first_column + p;
                const PathOfCenter path{start, stop, int(out.dim), p * channels, int(columns->irrep),
                                        int(c * layer.n_rows), int(out.n_paths), columns};
                for_degree(columns->size / 2, [&](auto degree) { f(degree, path); });
            }
        });
    }

    // product[(j, m), (p, u)] = Σ_a V[j, a, u] M[a, (m, p), u] for output o.
    Array tensor_products(const Layer& layer, int o, const std::vector<Array>& v, const Array& m) {
        const Array to = array(n * layer.outputs[o].dim, layer.outputs[o].n_paths * channels);
        for_paths(layer, o, [&](auto degree, const PathOfCenter& p) {
            constexpr int size = 2 * degree + 1;
            const Array& left = v[p.irrep];
            for (int u = 0; u < channels; u += LANES)
                for (int i = 0; i < p.n_components; i++) {
                    Num<D> column[size];
#pragma GCC unroll 9
                    for (int a = 0; a < size; a++) column[a] = at(m, p.row(i) + a, u);
                    for (int j = p.start; j < p.stop; j++) {
                        Num<D> total = at(left, j * size, u) * column[0];
#pragma GCC unroll 9
                        for (int a = 1; a < size; a++) total += at(left, j * size + a, u) * column[a];
                        set_at(to, j * p.n_components + i, p.from + u, total);
                    }
                }
        });
        return to;
    }

    // Adds to v_bar and writes the rows of m_bar that belong to output o.
    void tensor_products_backward(const Layer& layer, int o, const std::vector<Array>& v, const Array& m,
                                  const Array& from, const std::vector<Array>& v_bar, const Array& m_bar) {
        for_paths(layer, o, [&](auto degree, const PathOfCenter& p) {
            constexpr int size = 2 * degree + 1;
            const Array &left = v[p.irrep], &left_bar = v_bar[p.irrep];
            for (int u = 0; u < channels; u += LANES) {
                for (int j = p.start; j < p.stop; j++) {
                    Num<D> to_left[size];
#pragma GCC unroll 9
                    for (int a = 0; a < size; a++) to_left[a] = at(left_bar, j * size + a, u);
                    for (int i = 0; i < p.n_components; i++) {
                        const Num<D> bar = at(from, j * p.n_components + i, p.from + u);
                        const int row = p.row(i);
#pragma GCC unroll 9
                        for (int a = 0; a < size; a++) to_left[a] += bar * at(m, row + a, u);
                    }
#pragma GCC unroll 9
                    for (int a = 0; a < size; a++) set_at(left_bar, j * size + a, u, to_left[a]);
                }
                for (int i = 0; i < p.n_components; i++) {
                    Num<D> to_column[size];
#pragma GCC unroll 9
                    for (int a = 0; a < size; a++) to_column[a] = Num<D>{};
                    for (int j = p.start; j < p.stop; j++) {
                        const Num<D> bar = at(from, j * p.n_components + i, p.from + u);
#pragma GCC unroll 9
                        for (int a = 0; a < size; a++) to_column[a] += bar * at(left, j * size + a, u);
                    }
#pragma GCC unroll 9
                    for (int a = 0; a < size; a++) set_at(m_bar, p.row(i) + a, u, to_column[a]);
                }
            }
        });
    }
};
