// Energies of atoms and their gradient for nequip-allegro's flavour; names as in equicat/networks/allegro_parts.py.
#include "run.h"

extern "C" {
struct Product {  // M[a, c] = Σ_t coefficient_t weight[p_t] A[b_t] over terms t = (a, c, b, p)
    int64_t n_terms, dim_in, dim_out;
    const int64_t* terms;
    const real* coefficients;
};
struct NequipAllegro {
    int64_t n_layers, n_two_body, n_latent, features_silu;
    const Product* products;  // their weights are the first of Call.plain
};
}

namespace {

// Numbers of the matrices by their purpose.
struct Network {
    struct Layer {
        int first, env;        // env: to the next layer's environment weights; unused in the last
        Indices rest, shares;  // shares: of this layer's scalars in the sums that later readers see
    };
    const NequipAllegro& sizes;
    Indices two_body, head;
    std::vector<Layer> layers;  // layer 0: the two-body embedding

    Network(const Call& call, const NequipAllegro& sizes) : sizes(sizes) {
        Numbering numbers(call);
        two_body = numbers.several(sizes.n_two_body);
        for (int k = 0; k <= sizes.n_layers; k++) {
            Layer layer{};
            if (k > 0) layer.first = numbers.one(), layer.rest = numbers.several(sizes.n_latent - 1);
            if (k < sizes.n_layers) layer.env = numbers.one();
            layer.shares = numbers.several(sizes.n_layers + 1 - k);
            layers.push_back(layer);
        }
        head = numbers.several(call.n_matrices - numbers.next);
    }
};

template <int D> class Worker : public EdgeTile<D> {
    using Base = EdgeTile<D>;
    using Hidden = typename Base::Hidden;
    using Base::call, Base::l_max, Base::dims, Base::channels, Base::n, Base::n_centers, Base::plain_grads;
    using Base::array, Base::complete;
    using Base::linear, Base::linear_part, Base::linear_backward, Base::linear_backward_part;
    using Base::activated, Base::activated_backward;
    using Base::hidden_layers, Base::hidden_layers_backward, Base::environment, Base::environment_backward;
    using Base::for_centers, Base::at, Base::add_at, Base::set_at, Base::harmonic, Base::add_to_harmonic;

    const Network& net;
    const int n_layers;
    Array row_w0, row_w0_bar, w0;                // row_…: by row of the group; others by edge of the tile
    std::vector<Array> row_sums, row_sums_bar, sums, sums_bar, envs, env_weights, env_weights_bar, scalars, hidden,
        matrices, matrices_bar;
    std::vector<std::vector<Array>> chains;
    std::vector<Hidden> rest;
    Hidden two_body, head;

  public:
    Worker(const Call& call, const Weights& weights, const Network& net)
        : Base(call, weights), net(net), n_layers(net.sizes.n_layers) {}

    void begin(int start, int stop) {
        if (!this->begin_group(start, stop)) return;
        const Network::Layer& embedding = net.layers[0];
        hidden.assign(n_layers + 1, Array{}), row_sums.clear(), row_sums_bar.clear();
        hidden[0] = hidden_layers(this->embedded(), net.two_body, two_body);
        row_w0 = linear(hidden[0], embedding.env), row_w0_bar = this->rows_bar(row_w0);
        for (int share : embedding.shares) {
            row_sums.push_back(linear_part(hidden[0], share));
            row_sums_bar.push_back(this->rows_bar(row_sums.back()));
        }
        this->end_rows();
    }

    void tile(int start, int stop) {
        if (!this->begin_tile(start, stop)) return;
        forward();
        backward();
        this->geometry_backward();
    }

    void end() {
        if (!this->end_tiles()) return;
        const Array bar = hidden_bar(0, row_sums_bar, row_w0_bar);
        this->embedded_backward(hidden_layers_backward(bar, net.two_body, two_body));
    }

  private:
    // s[j, u] = Σ_l w0[j, l, u] Σ_m Y[j, lm] G[lm, u].
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
                        add_at(out, j, u, at(w0, j, l * channels + u) * dot);
                    }
                }
            });
        });
        return out;
    }

    // Adds to geometry_bar and w0_bar, and returns the derivative by G.
    Array read_out_backward(const Array& g, const Array& bar, const Array& w0_bar) {
        const Array g_bar = array(n_centers * dims, channels, true);
        for_centers([&](int c, int start, int stop) {
            for_degrees(l_max, [&](auto degree) {
                constexpr int l = degree, size = 2 * l + 1;
                for (int j = start; j < stop; j++) {
                    Num<D> to_sh[size] = {}, y[size];
                    for (int m = 0; m < size; m++) y[m] = harmonic(j, l * l + m);
                    for (int u = 0; u < channels; u += LANES) {
                        const Num<D> s_bar = at(bar, j, u), w = at(w0, j, l * channels + u) * s_bar;
                        Num<D> dot = {};
                        for (int m = 0; m < size; m++) {
                            const int row = c * dims + l * l + m;
                            const Num<D> column = at(g, row, u);
                            dot += y[m] * column;
                            to_sh[m] += w * column;
                            add_at(g_bar, row, u, y[m] * w);
                        }
                        add_at(w0_bar, j, l * channels + u, s_bar * dot);
                    }
                    for (int m = 0; m < size; m++) add_to_harmonic(j, l * l + m, to_sh[m]);
                }
            });
        });
        return g_bar;
    }

    // M[a, c, u] of every centre from its environment, in the weighted terms of layer k.
    Array product(int k, const Array& env) {
        const Product& product = net.sizes.products[k];
        const int size = product.dim_in * product.dim_out;
        const Array out = array(n_centers * size, channels, true);
        for (int c = 0; c < n_centers; c++)
            for (int t = 0; t < product.n_terms; t++) {
                const int64_t* term = product.terms + 4 * t;
                const real* weight = call.plain[k].data + term[3] * channels;
                for (int u = 0; u < channels; u += LANES)
                    add_at(out, c * size + term[0] * product.dim_out + term[1], u,
                           at(env, c * dims + term[2], u) * (load(weight + u) * product.coefficients[t]));
            }
        return out;
    }

    Array product_backward(int k, const Array& env, const Array& bar) {
        const Product& product = net.sizes.products[k];
        const int size = product.dim_in * product.dim_out;
        const Array env_bar = array(n_centers * dims, channels, true);
        for (int c = 0; c < n_centers; c++)
            for (int t = 0; t < product.n_terms; t++) {
                const int64_t* term = product.terms + 4 * t;
                const int row = c * dims + term[2];
                const real* weight = call.plain[k].data + term[3] * channels;
                for (int u = 0; u < channels; u += LANES) {
                    const Num<D> x = at(bar, c * size + term[0] * product.dim_out + term[1], u);
                    add_at(env_bar, row, u, x * (load(weight + u) * product.coefficients[t]));
                    if constexpr (D == 2) {
                        real* grad = plain_grads[k].data() + term[3] * channels + u;
                        store(grad, load(grad) + (at(env, row, u) * x).v[1] * product.coefficients[t]);
                    }
                }
            }
        return env_bar;
    }

    // g_k = the scalar column of M_k, g_j = M_j g_{j+1}; the last one, g_0, is what edges of layer k read.
    void chain(int k) {
        std::vector<Array>& g = chains[k];
        g.assign(k + 1, Array{});
        for (int j = k; j >= 0; j--) {
            const int rows = net.sizes.products[j].dim_in, columns = net.sizes.products[j].dim_out;
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
            const int rows = net.sizes.products[j].dim_in, columns = net.sizes.products[j].dim_out;
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

    // ---- the network ----------------------------------------------------------------------------------------------

    void forward() {
        const int K = n_layers;
        for (auto* list : {&sums, &envs, &env_weights, &scalars, &matrices}) list->assign(K + 1, Array{});
        chains.assign(K, {}), rest.assign(K, {});
        w0 = this->to_edges(row_w0);
        for (int r = 0; r <= K; r++) sums[r] = this->to_edges(row_sums[r]);
        for (int k = 0; k < K; k++) {
            const Network::Layer& layer = net.layers[k + 1];
            envs[k] = k ? environment(env_weights[k], 0) : environment(w0, (l_max + 1) * channels);
            matrices[k] = product(k, envs[k]);
            chain(k);
            scalars[k] = read_out(chains[k][0]);
            linear(scalars[k], layer.first, sums[k], true), complete(sums[k]);
            hidden[k + 1] = hidden_layers(activated(sums[k]), layer.rest, rest[k]);
            if (k + 1 < K) env_weights[k + 1] = linear(hidden[k + 1], layer.env);
            for (int r = k + 1; r <= K; r++) linear(hidden[k + 1], layer.shares[r - k - 1], sums[r], true);
        }
        complete(sums[K]);
        this->energies(hidden_layers(net.sizes.features_silu ? activated(sums[K]) : sums[K], net.head, head));
    }

    // Adds to geometry_bar, and to the derivatives by arrays of rows (row_w0_bar, row_sums_bar).
    void backward() {
        const int K = n_layers, n_weights = (l_max + 1) * channels;
        for (auto* list : {&sums_bar, &env_weights_bar, &matrices_bar}) list->assign(K + 1, Array{});
        const Array w0_bar = env_weights_bar[0] = array(n, w0.width, true);
        for (int k = 0; k < K; k++) matrices_bar[k] = array(matrices[k].n, channels, true);
        sums_bar[K] = hidden_layers_backward(this->energies_backward(head.h.back()), net.head, head);
        if (net.sizes.features_silu) activated_backward(sums[K], sums_bar[K]);
        for (int k = K - 1; k >= 0; k--) {
            const Network::Layer& layer = net.layers[k + 1];
            const Array bar = hidden_bar(k + 1, sums_bar, env_weights_bar[k + 1]);
            sums_bar[k] = hidden_layers_backward(bar, layer.rest, rest[k]);
            activated_backward(sums[k], sums_bar[k]);
            const Array s_bar = linear_backward(scalars[k], layer.first, sums_bar[k]);
            chain_backward(k, read_out_backward(chains[k][0], s_bar, w0_bar));
            const Array env_bar = product_backward(k, envs[k], matrices_bar[k]);
            if (k == 0) {
                environment_backward(w0, n_weights, env_bar, w0_bar);
            } else {
                env_weights_bar[k] = array(n, n_weights);
                environment_backward(env_weights[k], 0, env_bar, env_weights_bar[k]);
            }
        }
        this->add_to_rows(row_w0_bar, w0_bar);
        for (int r = 0; r <= K; r++) this->add_to_rows(row_sums_bar[r], sums_bar[r]);
    }

    // The derivative by the last hidden features of layer k: the sum over all maps that read them.
    Array hidden_bar(int k, const std::vector<Array>& sums_bar, const Array& env_bar) {
        const Array bar = linear_backward_part(hidden[k], net.layers[k].shares[0], sums_bar[k]);
        for (size_t r = 1; r < net.layers[k].shares.size(); r++)
            linear_backward(hidden[k], net.layers[k].shares[r], sums_bar[k + r], bar, true);
        if (k < n_layers) linear_backward(hidden[k], net.layers[k].env, env_bar, bar, true);
        complete(bar);
        return bar;
    }
};

}  // namespace

// Compiled as two objects, side by side: each has the code for one kind of numbers.
#if PASS == 1
extern "C" const int64_t structure_sizes[] = {sizeof(Call), sizeof(Matrix), sizeof(Geometry), sizeof(NequipAllegro), sizeof(Product)};
extern "C" int energies_and_gradient(const Call* call, char* message) {
    return guarded(message, [&] { run<Worker<1>>(*call, Network(*call, *static_cast<const NequipAllegro*>(call->network))); });
}
#else
extern "C" int weight_gradients(const Call* call, char* message) {
    return guarded(message, [&] { run<Worker<2>>(*call, Network(*call, *static_cast<const NequipAllegro*>(call->network))); });
}
#endif
