// A model as a C library (equicat_model.h): reads model.bin and the kernel for this processor from a folder, finds
// pairs, and makes energies, forces and virials of what the kernel gives.
//
// model.bin holds what equicat/interfaces/library/pack.py writes, in the order in which equicat_model reads it here. This
// file is compiled for any processor of its kind; the kernels, allegro.cpp of equicat/kernels/cpu, each for one generation.
#include "equicat_model.h"

#include <dlfcn.h>

#include <fstream>
#include <memory>
#include <string>
#include <thread>

#include "layers.h"
#include "neighbors.h"
#include "threads.h"

namespace {

constexpr double MIN_DISTANCE = 0.01;  // Å; the same in equicat/data/neighbors.py
constexpr size_t ALIGNMENT = 64;       // bytes at which arrays begin in model.bin
constexpr int64_t VERSION = 1;

// ---- the file ------------------------------------------------------------------------------------------------------

// A file of arrays, each after its length, at multiples of ALIGNMENT.
class File {
  public:
    explicit File(const std::string& path) {
        std::ifstream file(path, std::ios::binary | std::ios::ate);
        if (!file) throw std::runtime_error(path + ": cannot be read; the folder of the model must stay together");
        size = file.tellg();
        memory.reset(static_cast<char*>(::operator new(size + 1, std::align_val_t(ALIGNMENT))));
        file.seekg(0).read(memory.get(), size);
        if (!file) throw std::runtime_error(path + ": cannot be read");
        damaged = path + ": is damaged, or of another version; export the model again";
    }

    template <class T> const T* array(int64_t& n) {
        check(size - at >= sizeof(int64_t));
        std::memcpy(&n, memory.get() + at, sizeof(int64_t));
        at = (at + sizeof(int64_t) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
        check(n >= 0 && at <= size && (size - at) / sizeof(T) >= size_t(n));
        const T* data = reinterpret_cast<const T*>(memory.get() + at);
        at = (at + n * sizeof(T) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
        return data;
    }
    // An array that has n entries.
    template <class T> const T* of(int64_t n) {
        int64_t found;
        const T* data = array<T>(found);
        check(found == n);
        return data;
    }
    void check(bool condition) const {
        if (!condition) throw std::runtime_error(damaged);
    }
    void end() const { check(at == size); }

  private:
    struct Free {
        void operator()(char* p) const { ::operator delete(p, std::align_val_t(ALIGNMENT)); }
    };
    std::unique_ptr<char, Free> memory;
    size_t size = 0, at = 0;
    std::string damaged;
};

// ---- the processor -------------------------------------------------------------------------------------------------

struct Processor {
    const char* name;
    bool (*supported)();
};

// Kernels that an export may have, the fastest first; the same names in export.py.
const Processor PROCESSORS[] = {
#if defined(__x86_64__)
    {"x86-64-v4",
     [] {
         return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("bmi2");
     }},
    {"x86-64-v3",
     [] {
         return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                __builtin_cpu_supports("bmi2");
     }},
#endif
    {"generic", [] { return true; }},
};

using KernelFunction = int (*)(const Call*, char*);

// The kernel for a processor: its library, and its function.
class KernelLibrary {
  public:
    const char* processor = nullptr;
    KernelFunction run = nullptr;

    KernelLibrary(const std::string& folder, const char* wanted) {
        std::string reason = wanted ? "there is no kernel of that name" : "it has no kernel for this processor";
        for (const Processor& candidate : PROCESSORS) {
            if (wanted && std::string(wanted) != candidate.name) continue;
            if (!candidate.supported()) {
                if (wanted) reason = "this processor cannot run that kernel";
                continue;
            }
            const std::string path = folder + "/kernel-" + candidate.name + ".so";
            if (!std::ifstream(path)) continue;
            handle.reset(dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL));
            if (!handle) throw std::runtime_error(dlerror());
            processor = candidate.name;
            run = reinterpret_cast<KernelFunction>(dlsym(handle.get(), "energies_and_gradient"));
            if (!run) throw std::runtime_error(path + ": is no kernel");
            return;
        }
        throw std::runtime_error(folder + (wanted ? std::string(": ") + wanted : "") + ": " + reason);
    }

  private:
    struct Close {
        void operator()(void* library) const { dlclose(library); }
    };
    std::unique_ptr<void, Close> handle;
};

// ---- the model -----------------------------------------------------------------------------------------------------

// Repulsion of nuclei; see equicat/models/repulsion.py.
struct Repulsion {
    int envelope_p = 0;
    const double *prefactor = nullptr, *inverse_length = nullptr, *inverse_cutoff = nullptr;  // by pair of elements

    // Energy of one direction of a pair at distance r, and its derivative.
    void operator()(int pair, double r, double& energy, double& slope) const {
        const double x = r * inverse_cutoff[pair], d = r * inverse_length[pair];
        if (x >= 1) return;
        double screening = 0, screening_slope = 0;
        constexpr double terms[][2] = {{0.02817, 0.20162}, {0.28022, 0.4029}, {0.50986, 0.94229}, {0.18175, 3.1998}};
        for (const auto& [c, k] : terms) {
            const double part = c * std::exp(-k * d);
            screening += part, screening_slope -= k * part;
        }
        const double p = envelope_p, power = std::pow(x, p - 1);
        const double u = 1 - power * x * ((p + 1) * (p + 2) / 2 - x * (p * (p + 2) - x * p * (p + 1) / 2));
        const double u_slope = -p * (p + 1) * (p + 2) / 2 * power * (1 - x) * (1 - x);
        const double f = prefactor[pair] / r;
        energy += f * screening * u;
        slope += f * (screening_slope * inverse_length[pair] * u + screening * u_slope * inverse_cutoff[pair] -
                      screening * u / r);
    }
};

}  // namespace

struct equicat_model {
    File file;
    KernelLibrary kernel;
    double cutoff = 0;
    int64_t n_elements = 0;
    const int64_t* elements = nullptr;
    const double *references = nullptr, *factors = nullptr;  // by element, eV; factors: of the kernel's energies
    const real* norms = nullptr;                             // of the environments of centres, by element
    std::vector<Matrix> matrices, plain;
    std::vector<Layer> layers;
    Network network{};
    Call call{};  // without what belongs to a system
    bool repels = false;
    Repulsion repulsion;

    equicat_model(const std::string& folder, const char* processor)
        : file(folder + "/model.bin"), kernel(folder, processor) {
        const int64_t* sizes = file.of<int64_t>(18);
        file.check(sizes[0] == VERSION && sizes[1] == sizeof(real));
        n_elements = sizes[2];
        file.check(n_elements > 0 && n_elements < 200);
        cutoff = *file.of<double>(1);
        elements = file.of<int64_t>(n_elements);
        references = file.of<double>(n_elements), factors = file.of<double>(n_elements);
        norms = file.of<real>(n_elements);
        call.l_max = sizes[3], call.channels = sizes[4], call.embedding = sizes[5];
        read_geometry(sizes + 6);
        matrices = read_matrices(sizes[10]), plain = read_matrices(sizes[11]);
        network.n_layers = sizes[12], network.n_two_body = sizes[13], network.n_env = sizes[14];
        network.n_latent = sizes[15], network.features_silu = sizes[16];
        read_layers();
        repels = sizes[17] > 0;
        if (repels) {
            const int64_t n = n_elements * n_elements;
            repulsion = {int(sizes[17]), file.of<double>(n), file.of<double>(n), file.of<double>(n)};
        }
        file.end();
        network.layers = layers.data();
        call.network = &network;
        call.n_matrices = matrices.size(), call.matrices = matrices.data();
        call.n_plain = plain.size(), call.plain = plain.data();
    }
    equicat_model(const equicat_model&) = delete;

  private:
    void read_geometry(const int64_t* sizes) {
        Geometry& g = call.geometry;
        g.n_species = n_elements, g.splines = sizes[0], g.n_radial = sizes[1];
        g.envelope_p = sizes[2], g.span = sizes[3];
        g.inverse_cutoff = file.of<real>(n_elements * n_elements);
        int64_t n;
        g.terms = file.array<int64_t>(n);
        g.n_terms = n / 3;
        g.coefficients = file.of<real>(g.n_terms);
    }

    std::vector<Matrix> read_matrices(int64_t count) {
        std::vector<Matrix> found;
        for (; count > 0; count--) {
            const int64_t* size = file.of<int64_t>(2);
            found.push_back({file.of<real>(size[0] * size[1]), size[0], size[1], nullptr});
        }
        return found;
    }

    void read_layers() {
        for (int64_t k = 0; k < network.n_layers; k++) {
            Layer layer{};
            const int64_t* sizes = file.of<int64_t>(5);
            layer.n_rows = sizes[0], layer.n_columns = sizes[1];
            layer.n_outputs = sizes[2], layer.n_irreps = sizes[3], layer.n_mixed = sizes[4];
            int64_t n;
            layer.terms = file.array<int64_t>(n);
            layer.n_terms = n / 3;
            layer.coefficients = file.of<real>(layer.n_terms);
            layer.columns = reinterpret_cast<const Column*>(file.array<int64_t>(n));
            layer.outputs = reinterpret_cast<const Output*>(file.of<int64_t>(3 * layer.n_outputs));
            layer.dims = file.of<int64_t>(layer.n_irreps);
            layers.push_back(layer);
        }
    }
};

// ---- energies and forces -------------------------------------------------------------------------------------------

namespace {

// Which of the model's elements each atom is.
std::vector<int64_t> species_of(const equicat_model& model, int64_t n_atoms, const int32_t* numbers) {
    std::vector<int64_t> species;
    const int64_t *begin = model.elements, *end = begin + model.n_elements;
    for (int64_t i = 0; i < n_atoms; i++) {
        const int64_t* found = std::find(begin, end, int64_t(numbers[i]));
        if (found == end)
            throw std::invalid_argument("atom " + std::to_string(i) + " has atomic number " +
                                        std::to_string(numbers[i]) + ", which the model does not know");
        species.push_back(found - begin);
    }
    return species;
}

// Writes energies, forces and virial. All pairs are within the cutoff, and atoms after n_centers have none.
void evaluate(const equicat_model& model, int n_threads, const std::vector<int64_t>& species, int64_t n_centers,
              const PairList& pairs, equicat_results* out) {
    const int64_t n_atoms = species.size(), n_pairs = pairs.neighbor.size();
    std::vector<real> norm, vectors(pairs.vectors.begin(), pairs.vectors.end());
    for (int64_t s : species) norm.push_back(model.norms[s]);
    std::vector<real> energies(n_atoms), gradient(3 * n_pairs);
    if (n_pairs) {
        Call call = model.call;
        call.n_threads = n_threads > 0 ? n_threads : std::max(1u, std::thread::hardware_concurrency());
        call.n_centers = n_atoms;
        call.first_edge = pairs.first.data(), call.norm = norm.data(), call.energy = energies.data();
        call.geometry.neighbor = pairs.neighbor.data(), call.geometry.species = species.data();
        call.geometry.edge_vec = vectors.data(), call.geometry.gradient = gradient.data();
        char message[MESSAGE_SIZE] = "";
        if (model.kernel.run(&call, message)) throw std::runtime_error(message);
    }
    out->energy = 0;
    std::fill(out->virial, out->virial + 9, 0.0);
    std::vector<double> forces(3 * n_atoms);
    for (int64_t i = 0; i < n_atoms; i++) {
        const double factor = model.factors[species[i]];
        double energy = i < n_centers ? model.references[species[i]] + factor * energies[i] : 0;
        for (int64_t e = pairs.first[i]; e < pairs.first[i + 1]; e++) {
            const int64_t j = pairs.neighbor[e];
            const double* v = &pairs.vectors[3 * e];
            double slope = 0;
            const double r = std::sqrt(v[0] * v[0] + v[1] * v[1] + v[2] * v[2]);
            if (model.repels) model.repulsion(species[i] * model.n_elements + species[j], r, energy, slope);
            for (int a = 0; a < 3; a++) {
                const double by_vector = factor * gradient[3 * e + a] + slope * v[a] / r;
                forces[3 * i + a] += by_vector, forces[3 * j + a] -= by_vector;
                for (int b = 0; b < 3; b++) {
                    out->virial[3 * a + b] += 0.5 * by_vector * v[b], out->virial[3 * b + a] += 0.5 * by_vector * v[b];
                }
            }
        }
        out->energy += energy;
        if (out->atom_energies) out->atom_energies[i] = energy;
    }
    const auto finite = [](double x) { return std::isfinite(x); };
    require(std::isfinite(out->energy) && std::all_of(forces.begin(), forces.end(), finite),
            "energies or forces are not finite; atoms may be too close to each other");
    if (out->forces) std::copy(forces.begin(), forces.end(), out->forces);
}

void require_apart(int64_t i, int64_t j, const double* v) {
    const double square = v[0] * v[0] + v[1] * v[1] + v[2] * v[2];
    if (!(square >= MIN_DISTANCE * MIN_DISTANCE))
        throw std::invalid_argument("atoms " + std::to_string(i) + " and " + std::to_string(j) +
                                    " are at the same place");
}

void compute(const equicat_model& model, int n_threads, const equicat_system& system, equicat_results* out) {
    require(system.n_atoms >= 0 && system.n_atoms < INT32_MAX, "the number of atoms is not between 0 and 2^31");
    const std::vector<int64_t> species = species_of(model, system.n_atoms, system.numbers);
    std::array<bool, 3> periodic{};
    for (int k = 0; k < 3; k++) periodic[k] = system.periodic && system.periodic[k];
    require(system.cell || !(periodic[0] || periodic[1] || periodic[2]), "a periodic system needs a cell");
    const PairList pairs = Bins(system.n_atoms, system.positions, system.cell, periodic, model.cutoff).pairs();
    for (int64_t i = 0; i < system.n_atoms; i++)
        for (int64_t e = pairs.first[i]; e < pairs.first[i + 1]; e++)
            require_apart(i, pairs.neighbor[e], &pairs.vectors[3 * e]);
    evaluate(model, n_threads, species, system.n_atoms, pairs, out);
}

void compute_pairs(const equicat_model& model, int n_threads, const equicat_pairs& given, equicat_results* out) {
    require(given.n_centers >= 0 && given.n_centers <= given.n_atoms && given.n_atoms < INT32_MAX,
            "there are more centres than atoms");
    check_edges(given.first_pair, given.n_centers);
    const std::vector<int64_t> species = species_of(model, given.n_atoms, given.numbers);
    PairList pairs;
    for (int64_t i = 0; i < given.n_centers; i++) {
        for (int64_t e = given.first_pair[i]; e < given.first_pair[i + 1]; e++) {
            const double *v = given.vectors + 3 * e, square = v[0] * v[0] + v[1] * v[1] + v[2] * v[2];
            require(given.neighbor[e] >= 0 && given.neighbor[e] < given.n_atoms, "a neighbour is not an atom");
            if (square >= model.cutoff * model.cutoff) continue;
            require_apart(i, given.neighbor[e], v);
            pairs.neighbor.push_back(given.neighbor[e]);
            pairs.vectors.insert(pairs.vectors.end(), v, v + 3);
        }
        pairs.first.push_back(pairs.neighbor.size());
    }
    pairs.first.resize(given.n_atoms + 1, pairs.neighbor.size());
    evaluate(model, n_threads, species, given.n_centers, pairs, out);
}

}  // namespace

extern "C" {
equicat_model* equicat_open(const char* folder, const char* processor, char* message) {
    equicat_model* model = nullptr;
    guarded(message, [&] { model = new equicat_model(folder, processor); });
    return model;
}
void equicat_close(equicat_model* model) { delete model; }
double equicat_cutoff(const equicat_model* model) { return model->cutoff; }
const char* equicat_processor(const equicat_model* model) { return model->kernel.processor; }

int equicat_compute(const equicat_model* model, int n_threads, const equicat_system* system, equicat_results* results,
                    char* message) {
    return guarded(message, [&] { compute(*model, n_threads, *system, results); });
}
int equicat_compute_pairs(const equicat_model* model, int n_threads, const equicat_pairs* pairs,
                          equicat_results* results, char* message) {
    return guarded(message, [&] { compute_pairs(*model, n_threads, *pairs, results); });
}
}
