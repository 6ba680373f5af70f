// Energies of atoms and their gradient for Allegro as published; names as in equicat/networks/allegro_parts.py.
//
// Tensor features V of an edge are arrays by irrep, rows (edge, component). A layer contracts the environment with the
// coupling coefficients once a centre; each edge then multiplies its V with the small matrix of its centre, column by
// column, and a matrix product mixes paths and channels.
#include "run.h"

extern "C" {
struct Column {  // one component of one path: Σ_a V[irrep][a] M[row + a], a < size
    int64_t irrep, size, row;
};
struct Output {  // an irrep that a layer makes: columns by component, then path
    int64_t dim, n_paths, first_column;
};
struct Layer {
    int64_t n_terms, n_rows, n_outputs, n_irreps, n_mixed;  // n_mixed: of the outputs, those passed on, the last
    const int64_t* terms;  // (row of M, component of the environment); M[row] = Σ_t coefficient_t A[b_t]
    const real* coefficients;
    const Column* columns;
    const Output* outputs;  // the scalar first
    const int64_t* dims;    // of the irreps that enter
};
struct Allegro {
    int64_t n_layers, n_two_body, n_env, n_latent;  // numbers of matrices
    real keep, change;  // x = keep x + change u(r) MLP
    const Layer* layers;
};
}

namespace {

// Numbers of the matrices by their purpose.
struct Network {
    struct Part {
        int env;  // the first of the environment's weights
        Indices env_rest, rest, mix;
        int from_x, from_scalars;  // the first of the latent MLP, in two pieces
    };
    const Allegro& sizes;
    Indices two_body, head;
    std::vector<Part> layers;

    Network(const Call& call, const Allegro& sizes) : sizes(sizes) {
        Numbering numbers(call);
        two_body = numbers.several(sizes.n_two_body);
        for (int k = 0; k < sizes.n_layers; k++) {
            Part part{};
            part.env = numbers.one(), part.env_rest = numbers.several(sizes.n_env - 1);
            part.from_x = numbers.one(), part.from_scalars = numbers.one();
            part.rest = numbers.several(sizes.n_latent - 1);
            part.mix = numbers.several(sizes.layers[k].n_mixed);
            layers.push_back(part);
        }
        head = numbers.several(call.n_matrices - numbers.next);
    }
};

template <int D> class Worker : public EdgeTile<D> {
    using Base = EdgeTile<D>;
    using Hidden = typename Base::Hidden;
    using Base::call, Base::l_max, Base::dims, Base::channels, Base::n, Base::n_centers;
    using Base::geometry, Base::geometry_bar;
    using Base::array, Base::complete;
    using Base::linear, Base::linear_part, Base::linear_backward, Base::linear_backward_part;
    using Base::activated, Base::activated_backward;
    using Base::hidden_layers, Base::hidden_layers_backward, Base::environment, Base::environment_backward;
    using Base::for_centers, Base::at, Base::add_at, Base::set_at, Base::harmonic, Base::add_to_harmonic;

    // z → silu → W₁ → silu → W₂ …, from and to numbers before the nonlinearity.
    struct MLP {
        Array slope;  // of the first nonlinearity
        Hidden hidden;
    };
    // The part of a layer that depends on scalar features alone: environment weights, and their share of the first sum
    // of the latent MLP.
    struct Reading {
        Array x, weights, z;
        MLP env_mlp;
    };
    static constexpr Array Reading::*READ[] = {&Reading::x, &Reading::weights, &Reading::z};
    struct Saved {  // of a layer
        Reading reading;
        Array y, env, m;
        std::vector<Array> v, products;  // by irrep that enters, by output
        MLP latent;
    };
    const Network& net;
    const int n_layers;
    std::vector<Saved> saved;
    MLP two_body;
    Array two_body_out;            // by row of the group
    Reading row_reading, row_bar;  // of the first layer, by row of the group, and derivatives by it
    Hidden head;

  public:
    Worker(const Call& call, const Weights& weights, const Network& net)
        : Base(call, weights), net(net), n_layers(net.sizes.n_layers) {}

    void begin(int start, int stop) {
        if (!this->begin_group(start, stop)) return;
        two_body_out = mlp(this->embedded(), net.two_body, two_body);
        row_reading = read(updated(nullptr, two_body_out, this->row_geometry, 0), net.layers[0]);
        for (auto array : READ) row_bar.*array = this->rows_bar(row_reading.*array);
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
        read_backward(row_reading, net.layers[0], row_bar);
        const Array bar = updated_backward(two_body_out, row_bar.x, true, this->row_geometry, this->row_geometry_bar, 0);
        this->embedded_backward(mlp_backward(bar, net.two_body, two_body));
    }

  private:
    const Layer& layer(int k) const { return net.sizes.layers[k]; }
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

    Reading read(const Array& x, const Network::Part& part) {
        Reading r;
        r.x = x;
        r.weights = mlp(linear(x, part.env), part.env_rest, r.env_mlp);
        r.z = linear_part(x, part.from_x);
        return r;
    }
    Reading row_reading_to_edges() {
        Reading r;
        for (auto array : READ) r.*array = this->to_edges(row_reading.*array);
        return r;
    }
    // Adds the derivative by the scalar features to bar.x.
    void read_backward(const Reading& r, const Network::Part& part, const Reading& bar) {
        linear_backward(r.x, part.from_x, bar.z, bar.x, true);
        linear_backward(r.x, part.env, mlp_backward(bar.weights, part.env_rest, r.env_mlp), bar.x, true);
        complete(bar.x);
    }

    // keep x + change u y, or u y without x, with the envelope u in row `what` of `geometry`.
    Array updated(const Array* x, const Array& y, const Array& geometry, int what) {
        const Array out = array(y.n, y.width);
        const Vector keep = Vector{} + net.sizes.keep, change = Vector{} + (x ? net.sizes.change : 1);
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
        const Vector keep = Vector{} + net.sizes.keep, change = Vector{} + (first ? 1 : net.sizes.change);
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

    // V⁰[l][j, m, u] = w[j, l, u] Y[j, lm], with w from column `from` of `weights` on.
    std::vector<Array> first_tensors(const Array& weights, int from) {
        std::vector<Array> out(l_max + 1);
        for (int l = 0; l <= l_max; l++) {
            const int size = 2 * l + 1;
            out[l] = array(n * size, channels);
            for (int j = 0; j < n; j++)
                for (int m = 0; m < size; m++) {
                    const Num<D> y = harmonic(j, l * l + m);
                    for (int u = 0; u < channels; u += LANES)
                        set_at(out[l], j * size + m, u, at(weights, j, from + l * channels + u) * y);
                }
        }
        return out;
    }

    void first_tensors_backward(const Array& weights, int from, const std::vector<Array>& v_bar, const Array& w_bar) {
        for (int l = 0; l <= l_max; l++) {
            const int size = 2 * l + 1;
            for (int j = 0; j < n; j++) {
                for (int u = 0; u < channels; u += LANES) set_at(w_bar, j, from + l * channels + u, Num<D>{});
                for (int m = 0; m < size; m++) {
                    const Num<D> y = harmonic(j, l * l + m);
                    Num<D> to_y = {};
                    for (int u = 0; u < channels; u += LANES) {
                        const int column = from + l * channels + u;
                        const Num<D> bar = at(v_bar[l], j * size + m, u);
                        add_at(w_bar, j, column, bar * y);
                        to_y += bar * at(weights, j, column);
                    }
                    add_to_harmonic(j, l * l + m, to_y);
                }
            }
        }
    }

    Array contracted(const Layer& layer, const Array& env) {
        const Array m = array(n_centers * layer.n_rows, channels, true);
        for (int c = 0; c < n_centers; c++)
            for (int t = 0; t < layer.n_terms; t++) {
                const int64_t* term = layer.terms + 2 * t;
                const Vector coefficient = Vector{} + layer.coefficients[t];
                for (int u = 0; u < channels; u += LANES)
                    add_at(m, c * layer.n_rows + term[0], u, at(env, c * dims + term[1], u) * coefficient);
            }
        return m;
    }

    Array contracted_backward(const Layer& layer, const Array& m_bar) {
        const Array env_bar = array(n_centers * dims, channels, true);
        for (int c = 0; c < n_centers; c++)
            for (int t = 0; t < layer.n_terms; t++) {
                const int64_t* term = layer.terms + 2 * t;
                const Vector coefficient = Vector{} + layer.coefficients[t];
                for (int u = 0; u < channels; u += LANES)
                    add_at(env_bar, c * dims + term[1], u, at(m_bar, c * layer.n_rows + term[0], u) * coefficient);
            }
        return env_bar;
    }

    // f(degree as a constant, place) for every centre and each column of its matrix M; V has 2 degree + 1 components.
    template <class F> void for_columns(const Layer& layer, F f) {
        for_centers([&](int c, int start, int stop) {
            for (int o = 0; o < layer.n_outputs; o++) {
                const Output& out = layer.outputs[o];
                for (int i = 0; i < out.dim * out.n_paths; i++) {
                    const Column& column = layer.columns[out.first_column + i];
                    const Place place{start, stop, int(c * layer.n_rows + column.row), int(i / out.n_paths),
                                      int(out.dim), int(i % out.n_paths * channels), int(column.irrep), o};
                    for_degree(column.size / 2, [&](auto degree) { f(degree, place); });
                }
            }
        });
    }
    struct Place {
        int start, stop;              // edges of the centre
        int m_row;                    // first row of the column in M
        int component, n_components;  // of the output: row (edge, component) of the product
        int from;                     // first channel of the path in the product
        int irrep, output;
    };

    // products[o][(j, m), (p, u)] = Σ_a V[j, a, u] M[a, (m, p), u].
    std::vector<Array> products(const Layer& layer, const std::vector<Array>& v, const Array& m) {
        std::vector<Array> out(layer.n_outputs);
        for (int o = 0; o < layer.n_outputs; o++)
            out[o] = array(n * layer.outputs[o].dim, layer.outputs[o].n_paths * channels);
        for_columns(layer, [&](auto degree, const Place& p) {
            constexpr int size = 2 * degree + 1;
            const Array &left = v[p.irrep], &to = out[p.output];
            for (int u = 0; u < channels; u += LANES) {
                Num<D> column[size];
                for (int a = 0; a < size; a++) column[a] = at(m, p.m_row + a, u);
                for (int j = p.start; j < p.stop; j++) {
                    Num<D> total = at(left, j * size, u) * column[0];
                    for (int a = 1; a < size; a++) total += at(left, j * size + a, u) * column[a];
                    set_at(to, j * p.n_components + p.component, p.from + u, total);
                }
            }
        });
        return out;
    }

    // Adds to v_bar and writes m_bar.
    void products_backward(const Layer& layer, const std::vector<Array>& v, const Array& m,
                           const std::vector<Array>& bars, const std::vector<Array>& v_bar, const Array& m_bar) {
        for_columns(layer, [&](auto degree, const Place& p) {
            constexpr int size = 2 * degree + 1;
            const Array &left = v[p.irrep], &left_bar = v_bar[p.irrep], &from = bars[p.output];
            for (int u = 0; u < channels; u += LANES) {
                Num<D> column[size], to_column[size] = {};
                for (int a = 0; a < size; a++) column[a] = at(m, p.m_row + a, u);
                for (int j = p.start; j < p.stop; j++) {
                    const Num<D> bar = at(from, j * p.n_components + p.component, p.from + u);
                    for (int a = 0; a < size; a++) {
                        add_at(left_bar, j * size + a, u, bar * column[a]);
                        to_column[a] += bar * at(left, j * size + a, u);
                    }
                }
                for (int a = 0; a < size; a++) set_at(m_bar, p.m_row + a, u, to_column[a]);
            }
        });
    }

    // ---- the network ----------------------------------------------------------------------------------------------

    void forward() {
        const int n_weights = (l_max + 1) * channels;
        saved.assign(n_layers, Saved{});
        Array x;
        std::vector<Array> v;
        for (int k = 0; k < n_layers; k++) {
            const Layer& sizes = layer(k);
            const Network::Part& part = net.layers[k];
            Saved& s = saved[k];
            s.reading = k ? read(x, part) : row_reading_to_edges();
            const Array &weights = s.reading.weights, &z = s.reading.z;
            s.env = environment(weights, 0);
            s.v = k ? v : first_tensors(weights, n_weights);
            s.m = contracted(sizes, s.env);
            s.products = products(sizes, s.v, s.m);
            v.clear();
            for (int o = 0, i = 0; o < sizes.n_outputs; o++)
                if (mixed(sizes, o)) v.push_back(linear(s.products[o], part.mix[i++]));
            linear(s.products[0], part.from_scalars, z, true), complete(z);
            s.y = mlp(z, part.rest, s.latent);
            x = updated(&s.reading.x, s.y, geometry, dims);
        }
        this->energies(hidden_layers(x, net.head, head));
    }

    // Adds to geometry_bar, and to the derivatives by arrays of rows (row_bar).
    void backward() {
        const int n_weights = (l_max + 1) * channels;
        Reading bar;
        bar.x = hidden_layers_backward(this->energies_backward(head.h.back()), net.head, head);
        std::vector<Array> v_bar;
        for (int k = n_layers - 1; k >= 0; k--) {
            const Layer& sizes = layer(k);
            const Network::Part& part = net.layers[k];
            const Saved& s = saved[k];
            const Array& weights = s.reading.weights;
            const Array y_bar = updated_backward(s.y, bar.x, false, geometry, geometry_bar, dims);
            bar.z = mlp_backward(y_bar, part.rest, s.latent);
            std::vector<Array> bars(sizes.n_outputs);
            for (int o = 0, i = 0; o < sizes.n_outputs; o++)
                if (mixed(sizes, o)) {
                    bars[o] = linear_backward_part(s.products[o], part.mix[i], v_bar[i]), i++;
                    if (o) complete(bars[o]);
                }
            if (!bars[0].p) bars[0] = array(n, s.products[0].width, true);
            linear_backward(s.products[0], part.from_scalars, bar.z, bars[0], true), complete(bars[0]);
            v_bar.clear();
            for (int i = 0; i < sizes.n_irreps; i++) v_bar.push_back(array(n * sizes.dims[i], channels, true));
            const Array m_bar = array(n_centers * sizes.n_rows, channels);
            products_backward(sizes, s.v, s.m, bars, v_bar, m_bar);
            bar.weights = array(n, weights.width);
            environment_backward(weights, 0, contracted_backward(sizes, m_bar), bar.weights);
            if (k) read_backward(s.reading, part, bar);
        }
        first_tensors_backward(saved[0].reading.weights, n_weights, v_bar, bar.weights);
        for (auto array : READ) this->add_to_rows(row_bar.*array, bar.*array);
    }
};

}  // namespace

// Compiled as two objects, side by side: each has the code for one kind of numbers.
#if PASS == 1
extern "C" const int64_t structure_sizes[] = {sizeof(Call), sizeof(Matrix), sizeof(Geometry), sizeof(Allegro), sizeof(Layer)};
extern "C" int energies_and_gradient(const Call* call, char* message) {
    return guarded(message, [&] { run<Worker<1>>(*call, Network(*call, *static_cast<const Allegro*>(call->network))); });
}
#else
extern "C" int weight_gradients(const Call* call, char* message) {
    return guarded(message, [&] { run<Worker<2>>(*call, Network(*call, *static_cast<const Allegro*>(call->network))); });
}
#endif
