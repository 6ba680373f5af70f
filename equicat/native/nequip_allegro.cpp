// Energies of atoms and their gradient, for the network of equicat/models/nequip_allegro.py: a few centres at a time go
// forward and backward through all layers while everything about their edges stays in the cache.
//
// Names are those of the Python module, with x_bar the derivative of the sum of energies by x. The same code on dual
// numbers gives what training needs (see numbers.h): with e and sh perturbed along given tangents, the ε part of every
// weight's gradient is the derivative of Σ_i to_energy_i E_i + (dE/de · e_tangent + dE/dsh · sh_tangent). In the reverse
// sweep dual numbers multiply as in the forward one when the ε part of x_bar is the adjoint of the value of x.
#include <algorithm>
#include <thread>

#include "matmul.h"

extern "C" {
struct Matrix {
    const real* data;  // [k, n], both multiples of BLOCK
    int64_t k, n;
    real* grad;
};
struct Product {  // M[a, c] = Σ_t coefficient_t weight[p_t] A[b_t] over terms t = (a, c, b, p)
    int64_t n_terms, n_paths, dim_in, dim_out;
    const int64_t* terms;
    const real *coefficients, *weight;
    real* grad;
};
struct Call {
    int64_t n_layers, l_max, channels, n_two_body, n_latent, n_head, features_silu, n_threads, n_centers;
    const int64_t* first_edge;  // [n_centers + 1]
    const real *norm, *e, *sh, *e_tangent, *sh_tangent, *to_energy;
    const Matrix* matrices;
    const Product* products;
    const real* last;  // of the readout, to one number
    real *last_grad, *energy, *e_bar, *sh_bar;
};
int64_t block() { return BLOCK; }
}

namespace {

constexpr int MAX_DEGREE = 4;

template <class F> void for_degrees(int l_max, F f) {
    f(std::integral_constant<int, 0>{});
    if (l_max > 0) f(std::integral_constant<int, 1>{});
    if (l_max > 1) f(std::integral_constant<int, 2>{});
    if (l_max > 2) f(std::integral_constant<int, 3>{});
    if (l_max > 3) f(std::integral_constant<int, MAX_DEGREE>{});
}

struct Weight {
    int index, k, n;
    std::vector<real> forward, backward;
};

// The matrices by what they do; the order in which Python lists them.
struct Network {
    struct Layer {
        int first, env;                 // environment's weights of the next layer; env unused in the last
        std::vector<int> rest, shares;  // shares: of this layer's scalars in the sums that later readers see
    };
    std::vector<Weight> weights;
    std::vector<int> two_body, head;
    std::vector<Layer> layers;  // layer 0: the two-body embedding
    int tile_rows;              // that a tile should have, at least: more where weights do not fit into the second cache

    explicit Network(const Call& call) {
        const int n_layers = call.n_layers;
        int next = 0;
        size_t n_weights = 0;
        const auto take = [&](int count) {
            std::vector<int> out;
            while (count-- > 0) out.push_back(next++);
            return out;
        };
        two_body = take(call.n_two_body);
        for (int k = 0; k <= n_layers; k++) {
            Layer layer{};
            if (k > 0) layer.first = next++, layer.rest = take(call.n_latent - 1);
            if (k < n_layers) layer.env = next++;
            layer.shares = take(n_layers + 1 - k);
            layers.push_back(layer);
        }
        head = take(call.n_head);
        for (int index = 0; index < next; index++) {
            const Matrix& m = call.matrices[index];
            const int k = m.k, n = m.n;
            weights.push_back({index, k, n, packed(m.data, k, n), packed(transposed(m.data, k, n).data(), n, k)});
            n_weights += k * n;
        }
        tile_rows = n_weights * sizeof(real) < (1 << 19) ? 48 : 192;
    }
};

template <int D> class Worker {
    // [D, n, width]: values, then ε parts; rows are `step` apart.
    struct Array {
        real* p = nullptr;
        int n = 0, width = 0, step = 0;
        long plane() const { return long(n) * step; }
        real* row(int r) const { return p + long(r) * step; }
    };
    const Call& call;
    const Network& net;
    const int l_max, dims, channels;
    std::vector<std::vector<real>> blocks;  // memory, used again by every tile
    size_t block_at = 0, used = 0;
    std::vector<std::vector<real>> grads, product_grads;
    std::vector<real> last_grad;

    int first_center = 0, n_centers = 0, n = 0;  // of the tile; n edges
    std::vector<int> begin;                      // first row of each centre
    Array x, sh, e_bar, sh_bar, w0, env0, env0_bar;
    std::vector<Array> two_z, two_h, sums, sums_bar, envs, envs_bar, env_weights, env_weights_bar, scalars, hidden;
    std::vector<Array> matrices, matrices_bar;
    std::vector<std::vector<Array>> rest_z, rest_h, chains;
    std::vector<Array> head_z, head_h;

  public:
    Worker(const Call& call, const Network& net)
        : call(call), net(net), l_max(call.l_max), dims((l_max + 1) * (l_max + 1)), channels(call.channels) {
        if (D == 1) return;
        for (const Weight& w : net.weights) grads.emplace_back(size_t(w.k) * w.n);
        for (int k = 0; k < call.n_layers; k++) product_grads.emplace_back(call.products[k].n_paths * channels);
        last_grad.resize(width_of_last());
    }

    // Centres [start, stop).
    void run(int start, int stop) {
        while (start < stop) {
            int end = start + 1;
            while (end < stop && call.first_edge[end] - call.first_edge[start] < net.tile_rows) end++;
            tile(start, end);
            start = end;
        }
    }

    void add_gradients() const {
        const auto add_to = [](real* to, const std::vector<real>& from) {
            for (size_t k = 0; k < from.size(); k++) to[k] += from[k];
        };
        for (size_t k = 0; k < grads.size(); k++) add_to(call.matrices[k].grad, grads[k]);
        for (size_t k = 0; k < product_grads.size(); k++) add_to(call.products[k].grad, product_grads[k]);
        add_to(call.last_grad, last_grad);
    }

  private:
    int width_of_last() const {
        const int of_features = net.weights[net.layers[0].shares.back()].n;
        return net.head.empty() ? of_features : net.weights[net.head.back()].n;
    }

    // ---- memory and elementary steps ------------------------------------------------------------------------------

    Array array(int rows, int width, bool zero = false) {
        const int step = leading(width);
        const size_t size = size_t(D) * rows * step;
        while (true) {
            if (block_at == blocks.size()) blocks.emplace_back(std::max(size, size_t(1) << 18));
            if (used + size <= blocks[block_at].size()) break;
            block_at++, used = 0;
        }
        real* p = blocks[block_at].data() + used;
        used += size;
        if (zero) std::fill(p, p + size, real(0));
        return {p, rows, width, step};
    }

    Array linear(const Array& x, int weight) {
        const Array out = array(x.n, net.weights[weight].n);
        linear(x, weight, out, false);
        return out;
    }

    void linear(const Array& x, int weight, const Array& out, bool accumulate) {
        const Weight& w = net.weights[weight];
        matmul(D * x.n, w.k, w.n, x.p, x.step, w.forward.data(), out.p, out.step, accumulate);
    }

    // x_bar (+)= out_bar Wᵀ, and the gradient of W.
    void linear_backward(const Array& x, int weight, const Array& out_bar, const Array& x_bar, bool accumulate) {
        const Weight& w = net.weights[weight];
        matmul(D * x.n, w.n, w.k, out_bar.p, out_bar.step, w.backward.data(), x_bar.p, x_bar.step, accumulate);
        if constexpr (D == 2) {
            real* grad = grads[weight].data();
            add_outer(x.n, w.k, w.n, x.p, x.step, out_bar.p + out_bar.plane(), out_bar.step, grad);
            add_outer(x.n, w.k, w.n, x.p + x.plane(), x.step, out_bar.p, out_bar.step, grad);
        }
    }

    Array activated(const Array& z) {
        const Array h = array(z.n, z.width);
        for (long k = 0; k < z.plane(); k += LANES) store(h.p + k, h.plane(), silu(load<D>(z.p + k, z.plane())));
        return h;
    }

    // From the derivative by silu(z) to that by z, in place.
    void activated_backward(const Array& z, const Array& bar) {
        for (long k = 0; k < z.plane(); k += LANES)
            store(bar.p + k, z.plane(), times_silu_slope(load<D>(bar.p + k, z.plane()), load<D>(z.p + k, z.plane())));
    }

    // Hidden layers: z_i = x_i W_i, x_{i+1} = silu(z_i).
    Array hidden_layers(Array x, const std::vector<int>& weights, std::vector<Array>& z, std::vector<Array>& h) {
        z.clear(), h.assign(1, x);
        for (int w : weights) z.push_back(linear(x, w)), h.push_back(x = activated(z.back()));
        return x;
    }

    Array hidden_layers_backward(Array bar, const std::vector<int>& weights, const std::vector<Array>& z,
                                 const std::vector<Array>& h) {
        for (int i = int(weights.size()) - 1; i >= 0; i--) {
            activated_backward(z[i], bar);
            const Array before = array(h[i].n, h[i].width);
            linear_backward(h[i], weights[i], bar, before, false);
            bar = before;
        }
        return bar;
    }

    // Rows of the caller's arrays, values and tangents, as one of ours.
    Array rows_of(const real* values, const real* tangents, int width) {
        const Array out = array(n, width);
        const long offset = call.first_edge[first_center] * width;
        for (int j = 0; j < n; j++) {
            std::memcpy(out.row(j), values + offset + long(j) * width, sizeof(real) * width);
            if constexpr (D == 2)
                std::memcpy(out.row(j) + out.plane(), tangents + offset + long(j) * width, sizeof(real) * width);
        }
        return out;
    }

    // And back: gradients, or with dual numbers their derivatives.
    void rows_to(real* to, const Array& from) {
        for (int j = 0; j < n; j++)
            std::memcpy(to + (call.first_edge[first_center] + j) * from.width, from.row(j) + (D - 1) * from.plane(),
                        sizeof(real) * from.width);
    }

    template <class F> void for_centers(F f) {
        for (int c = 0; c < n_centers; c++) f(c, begin[c], begin[c + 1]);
    }

    // ---- the tensor track -----------------------------------------------------------------------------------------

    // A[lm, u] = norm Σ_j Y[j, lm] w[j, l, u] for every centre; w begins at column `at` of `weights`.
    Array environment(const Array& weights, int at) {
        const Array env = array(n_centers * dims, channels);
        for_centers([&](int c, int start, int stop) {
            const Vector norm = Vector{} + call.norm[first_center + c];
            for_degrees(l_max, [&](auto degree) {
                constexpr int l = degree, size = 2 * l + 1;
                for (int u = 0; u < channels; u += LANES) {
                    Num<D> acc[size] = {};
                    for (int j = start; j < stop; j++) {
                        const Num<D> w = load<D>(weights.row(j) + at + l * channels + u, weights.plane());
                        for (int m = 0; m < size; m++) acc[m] += spread<D>(sh.row(j) + l * l + m, sh.plane()) * w;
                    }
                    for (int m = 0; m < size; m++)
                        store(env.row(c * dims + l * l + m) + u, env.plane(), acc[m] * norm);
                }
            });
        });
        return env;
    }

    // To sh_bar, and to the columns from `at` on of weights_bar.
    void environment_backward(const Array& weights, int at, const Array& env_bar, const Array& weights_bar) {
        for_centers([&](int c, int start, int stop) {
            const Vector norm = Vector{} + call.norm[first_center + c];
            for_degrees(l_max, [&](auto degree) {
                constexpr int l = degree, size = 2 * l + 1;
                for (int j = start; j < stop; j++) {
                    Num<D> to_sh[size] = {};
                    for (int u = 0; u < channels; u += LANES) {
                        const int column = at + l * channels + u;
                        const Num<D> w = load<D>(weights.row(j) + column, weights.plane());
                        Num<D> to_w = {};
                        for (int m = 0; m < size; m++) {
                            const auto bar = load<D>(env_bar.row(c * dims + l * l + m) + u, env_bar.plane()) * norm;
                            to_w += spread<D>(sh.row(j) + l * l + m, sh.plane()) * bar;
                            to_sh[m] += w * bar;
                        }
                        store(weights_bar.row(j) + column, weights_bar.plane(), to_w);
                    }
                    for (int m = 0; m < size; m++) add_sum(sh_bar.row(j) + l * l + m, sh_bar.plane(), to_sh[m]);
                }
            });
        });
    }

    // s[j, u] = Σ_l w0[j, l, u] Σ_m Y[j, lm] G[lm, u].
    Array read_out(const Array& g) {
        const Array out = array(n, channels, true);
        for_centers([&](int c, int start, int stop) {
            for_degrees(l_max, [&](auto degree) {
                constexpr int l = degree, size = 2 * l + 1;
                for (int u = 0; u < channels; u += LANES) {
                    Num<D> column[size];
                    for (int m = 0; m < size; m++)
                        column[m] = load<D>(g.row(c * dims + l * l + m) + u, g.plane());
                    for (int j = start; j < stop; j++) {
                        Num<D> dot = {};
                        for (int m = 0; m < size; m++)
                            dot += spread<D>(sh.row(j) + l * l + m, sh.plane()) * column[m];
                        const Num<D> w = load<D>(w0.row(j) + l * channels + u, w0.plane());
                        add(out.row(j) + u, out.plane(), w * dot);
                    }
                }
            });
        });
        return out;
    }

    // To sh_bar and w0_bar, and the derivative by G.
    Array read_out_backward(const Array& g, const Array& bar, const Array& w0_bar) {
        const Array g_bar = array(n_centers * dims, channels, true);
        for_centers([&](int c, int start, int stop) {
            for_degrees(l_max, [&](auto degree) {
                constexpr int l = degree, size = 2 * l + 1;
                for (int j = start; j < stop; j++) {
                    Num<D> to_sh[size] = {}, y[size];
                    for (int m = 0; m < size; m++) y[m] = spread<D>(sh.row(j) + l * l + m, sh.plane());
                    for (int u = 0; u < channels; u += LANES) {
                        const Num<D> s_bar = load<D>(bar.row(j) + u, bar.plane());
                        const Num<D> w = load<D>(w0.row(j) + l * channels + u, w0.plane()) * s_bar;
                        Num<D> dot = {};
                        for (int m = 0; m < size; m++) {
                            const int row = c * dims + l * l + m;
                            const Num<D> column = load<D>(g.row(row) + u, g.plane());
                            dot += y[m] * column;
                            to_sh[m] += w * column;
                            add(g_bar.row(row) + u, g_bar.plane(), y[m] * w);
                        }
                        add(w0_bar.row(j) + l * channels + u, w0_bar.plane(), s_bar * dot);
                    }
                    for (int m = 0; m < size; m++) add_sum(sh_bar.row(j) + l * l + m, sh_bar.plane(), to_sh[m]);
                }
            });
        });
        return g_bar;
    }

    // M[a, c, u] of every centre from its environment.
    Array product(const Product& product, const Array& env) {
        const int size = product.dim_in * product.dim_out;
        const Array out = array(n_centers * size, channels, true);
        for (int c = 0; c < n_centers; c++)
            for (int t = 0; t < product.n_terms; t++) {
                const int64_t* term = product.terms + 4 * t;
                real* to = out.row(c * size + term[0] * product.dim_out + term[1]);
                const real *from = env.row(c * dims + term[2]), *weight = product.weight + term[3] * channels;
                for (int u = 0; u < channels; u += LANES)
                    add(to + u, out.plane(), load<D>(from + u, env.plane()) * (load(weight + u) * product.coefficients[t]));
            }
        return out;
    }

    Array product_backward(int k, const Array& env, const Array& bar) {
        const Product& product = call.products[k];
        const int size = product.dim_in * product.dim_out;
        const Array env_bar = array(n_centers * dims, channels, true);
        for (int c = 0; c < n_centers; c++)
            for (int t = 0; t < product.n_terms; t++) {
                const int64_t* term = product.terms + 4 * t;
                const real* from = bar.row(c * size + term[0] * product.dim_out + term[1]);
                const int row = c * dims + term[2];
                const real* weight = product.weight + term[3] * channels;
                for (int u = 0; u < channels; u += LANES) {
                    const Num<D> x = load<D>(from + u, bar.plane());
                    add(env_bar.row(row) + u, env_bar.plane(), x * (load(weight + u) * product.coefficients[t]));
                    if constexpr (D == 2) {
                        real* grad = product_grads[k].data() + term[3] * channels + u;
                        const Num<D> y = load<D>(env.row(row) + u, env.plane()) * x;
                        store(grad, load(grad) + y.v[1] * product.coefficients[t]);
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
            const Product& product = call.products[j];
            const int rows = product.dim_in, columns = product.dim_out;
            g[j] = array(n_centers * rows, channels, true);
            for (int c = 0; c < n_centers; c++)
                for (int a = 0; a < rows; a++)
                    for (int b = 0; b < (j == k ? 1 : columns); b++)
                        for (int u = 0; u < channels; u += LANES) {
                            auto x = load<D>(matrices[j].row((c * rows + a) * columns + b) + u, matrices[j].plane());
                            if (j < k) x = x * load<D>(g[j + 1].row(c * columns + b) + u, g[j + 1].plane());
                            add(g[j].row(c * rows + a) + u, g[j].plane(), x);
                        }
        }
    }

    void chain_backward(int k, Array bar) {
        for (int j = 0; j <= k; j++) {
            const Product& product = call.products[j];
            const int rows = product.dim_in, columns = product.dim_out;
            const Array &m = matrices[j], &m_bar = matrices_bar[j], next = chains[k][j == k ? k : j + 1];
            const Array next_bar = j < k ? array(n_centers * columns, channels, true) : Array{};
            for (int c = 0; c < n_centers; c++)
                for (int a = 0; a < rows; a++)
                    for (int b = 0; b < (j == k ? 1 : columns); b++)
                        for (int u = 0; u < channels; u += LANES) {
                            const int row = (c * rows + a) * columns + b;
                            const auto x = load<D>(bar.row(c * rows + a) + u, bar.plane());
                            if (j == k) {
                                add(m_bar.row(row) + u, m_bar.plane(), x);
                                continue;
                            }
                            const auto y = load<D>(next.row(c * columns + b) + u, next.plane());
                            add(m_bar.row(row) + u, m_bar.plane(), x * y);
                            add(next_bar.row(c * columns + b) + u, next_bar.plane(), x * load<D>(m.row(row) + u, m.plane()));
                        }
            bar = next_bar;
        }
    }

    // ---- the network ----------------------------------------------------------------------------------------------

    void tile(int start, int stop) {
        block_at = used = 0;
        first_center = start, n_centers = stop - start;
        begin.clear();
        for (int c = start; c <= stop; c++) begin.push_back(call.first_edge[c] - call.first_edge[start]);
        n = begin.back();
        if (!n) {
            if (D == 1) std::fill(call.energy + start, call.energy + stop, real(0));
            return;
        }
        forward();
        backward();
        rows_to(call.e_bar, e_bar);
        rows_to(call.sh_bar, sh_bar);
    }

    void forward() {
        const int K = call.n_layers;
        const int width = net.weights[net.two_body.empty() ? net.layers[0].env : net.two_body[0]].k;
        x = rows_of(call.e, call.e_tangent, width);
        sh = rows_of(call.sh, call.sh_tangent, dims);
        for (auto* list : {&sums, &envs, &env_weights, &scalars, &hidden, &matrices}) list->assign(K + 1, Array{});
        for (auto* list : {&rest_z, &rest_h, &chains}) list->assign(K + 1, {});
        hidden[0] = hidden_layers(x, net.two_body, two_z, two_h);
        w0 = linear(hidden[0], net.layers[0].env);
        for (int r = 0; r <= K; r++) sums[r] = linear(hidden[0], net.layers[0].shares[r]);
        for (int k = 0; k < K; k++) {
            const Network::Layer& layer = net.layers[k + 1];
            envs[k] = k ? environment(env_weights[k], 0) : environment(w0, (l_max + 1) * channels);
            matrices[k] = product(call.products[k], envs[k]);
            chain(k);
            scalars[k] = read_out(chains[k][0]);
            linear(scalars[k], layer.first, sums[k], true);
            hidden[k + 1] = hidden_layers(activated(sums[k]), layer.rest, rest_z[k], rest_h[k]);
            if (k + 1 < K) env_weights[k + 1] = linear(hidden[k + 1], layer.env);
            for (int r = k + 1; r <= K; r++) linear(hidden[k + 1], layer.shares[r - k - 1], sums[r], true);
        }
        const Array features = call.features_silu ? activated(sums[K]) : sums[K];
        const Array last = hidden_layers(features, net.head, head_z, head_h);
        if constexpr (D == 1) for_centers([&](int c, int start, int stop) {
            Vector total = {};
            for (int j = start; j < stop; j++)
                for (int u = 0; u < last.width; u += LANES) total += load(last.row(j) + u) * load(call.last + u);
            call.energy[first_center + c] = sum(total);
        });
    }

    // The derivative by the last hidden features: 1 (and to_energy as its ε part) times the last weights.
    Array seed(const Array& last) {
        const Array bar = array(n, last.width);
        for_centers([&](int c, int start, int stop) {
            for (int j = start; j < stop; j++)
                for (int u = 0; u < last.width; u += LANES) {
                    const Vector weight = load(call.last + u);
                    store(bar.row(j) + u, weight);
                    if constexpr (D == 2) {
                        const real to_energy = call.to_energy[first_center + c];
                        store(bar.row(j) + bar.plane() + u, weight * to_energy);
                        const auto h = load<D>(last.row(j) + u, last.plane());
                        real* grad = last_grad.data() + u;
                        store(grad, load(grad) + h.v[0] * to_energy + h.v[1]);
                    }
                }
        });
        return bar;
    }

    void backward() {
        const int K = call.n_layers, n_weights = (l_max + 1) * channels;
        for (auto* list : {&sums_bar, &env_weights_bar, &matrices_bar}) list->assign(K + 1, Array{});
        sh_bar = array(n, dims, true);
        const Array w0_bar = array(n, w0.width, true);
        for (int k = 0; k < K; k++) matrices_bar[k] = array(matrices[k].n, channels, true);
        sums_bar[K] = hidden_layers_backward(seed(head_h.back()), net.head, head_z, head_h);
        if (call.features_silu) activated_backward(sums[K], sums_bar[K]);
        for (int k = K - 1; k >= 0; k--) {
            const Network::Layer& layer = net.layers[k + 1];
            const Array bar = hidden_bar(k + 1);
            sums_bar[k] = hidden_layers_backward(bar, layer.rest, rest_z[k], rest_h[k]);
            activated_backward(sums[k], sums_bar[k]);
            const Array s_bar = array(n, channels);
            linear_backward(scalars[k], layer.first, sums_bar[k], s_bar, false);
            chain_backward(k, read_out_backward(chains[k][0], s_bar, w0_bar));
            const Array env_bar = product_backward(k, envs[k], matrices_bar[k]);
            if (k == 0) {
                environment_backward(w0, n_weights, env_bar, w0_bar);
            } else {
                env_weights_bar[k] = array(n, n_weights);
                environment_backward(env_weights[k], 0, env_bar, env_weights_bar[k]);
            }
        }
        env_weights_bar[0] = w0_bar;
        e_bar = hidden_layers_backward(hidden_bar(0), net.two_body, two_z, two_h);
    }

    // The derivative by the last hidden features of layer k, from all that reads them.
    Array hidden_bar(int k) {
        const Array bar = array(n, hidden[k].width);
        for (size_t r = 0; r < net.layers[k].shares.size(); r++)
            linear_backward(hidden[k], net.layers[k].shares[r], sums_bar[k + r], bar, r > 0);
        if (k < call.n_layers) linear_backward(hidden[k], net.layers[k].env, env_weights_bar[k], bar, true);
        return bar;
    }
};

// Each thread takes a run of consecutive centres with about as many edges: the same sums, in the same order, every time.
template <int D> void run(const Call& call) {
    const Network net(call);
    const int n_threads = std::max<int64_t>(1, std::min(call.n_threads, call.first_edge[call.n_centers] / net.tile_rows));
    std::vector<Worker<D>> workers(n_threads, Worker<D>(call, net));
    std::vector<std::thread> threads;
    for (int t = 0; t < n_threads; t++) {
        const auto cut = [&](int part) {
            const int64_t* first = call.first_edge;
            const int64_t edge = first[call.n_centers] / n_threads * part;
            return part == n_threads ? call.n_centers
                                     : std::lower_bound(first, first + call.n_centers, edge) - first;
        };
        const auto work = [&workers, t, start = cut(t), stop = cut(t + 1)] { workers[t].run(start, stop); };
        if (t + 1 < n_threads)
            threads.emplace_back(work);
        else
            work();
    }
    for (std::thread& thread : threads) thread.join();
    if (D == 2)
        for (const Worker<D>& worker : workers) worker.add_gradients();
}

}  // namespace

extern "C" void energies_and_gradient(const Call* call) { run<1>(*call); }
extern "C" void weight_gradients(const Call* call) { run<2>(*call); }
