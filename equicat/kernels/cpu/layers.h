// The description of a network that a kernel gets, and the part of a tile that both flavours of Allegro have.
//
// A flavour (published.h, nequip.h) is a Layers<D> with these methods, which allegro.cpp calls:
//   embed: makes `rows`, arrays that layers read, for a group; embed_backward: from rows_bar to the derivative by the
//     embedding;
//   begin_layers: takes these arrays for a tile, as `edges`; end_layers: returns the derivatives by them;
//   products(k, M): layer k from the matrices M of its centres on, up to env_weights[k + 1]; products_backward(k): the
//     reverse, which reads env_weights_bar[k + 1], makes room for env_weights_bar[k] and returns M_bar;
//   features, features_backward: what the readout reads.
#pragma once

#include "edges.h"

extern "C" {
struct Column {  // published: one component of one path, Σ_a V[irrep][a] M[row + a], a < size
    int64_t irrep, size, row;
};
struct Output {  // published: an irrep that a layer makes: columns by component, then path
    int64_t dim, n_paths, first_column;
};
struct Layer {
    int64_t n_terms, n_rows;
    const int64_t* terms;  // t: a row of M, a component b of the environment, a path p
    const real* coefficients;
    int64_t n_columns;                     // nequip: M is [n_rows / n_columns, n_columns]
    int64_t n_outputs, n_irreps, n_mixed;  // published; n_mixed: of the outputs, those passed on, the last
    const Column* columns;
    const Output* outputs;  // the scalar first
    const int64_t* dims;    // of the irreps that enter
};
struct Network {
    int64_t n_layers, n_two_body, n_env, n_latent, features_silu;  // three numbers of matrices; features_silu: nequip
    const Layer* layers;
};
}

template <int D> class Layers : public EdgeTile<D> {
  public:
    Layers(const Call& call, const Weights& weights)
        : EdgeTile<D>(call, weights), network(*call.network), n_layers(network.n_layers), numbers(call),
          two_body(numbers.several(network.n_two_body)) {}

  protected:
    const Network& network;
    const int n_layers;
    Numbering numbers;
    const Indices two_body;
    Indices head;
    std::vector<Array> rows, rows_bar;  // the first are the environment's weights
    // By layer, [edges, (l, u)]; those of layer 0 have as many columns again, the weights of V⁰.
    std::vector<Array> env_weights, env_weights_bar;

    int n_weights() const { return (this->l_max + 1) * this->channels; }
    const Layer& layer(int k) const { return network.layers[k]; }
};
