/* A model of equicat as a C library.
 *
 * The library is in the folder that `equicat export --format library` writes, with this header. It needs neither
 * equicat nor PyTorch. Units are eV and Å. A function that can fail writes the reason, of at most EQUICAT_MESSAGE bytes,
 * to `message`.
 *
 *     cc md.c -I mine mine/libequicat_model.so -Wl,-rpath,mine
 */
#ifndef EQUICAT_MODEL_H
#define EQUICAT_MODEL_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define EQUICAT_MESSAGE 256

typedef struct equicat_model equicat_model;

/* A system whose pairs the library finds. */
typedef struct {
    int64_t n_atoms;
    const int32_t* numbers;   /* [n_atoms] atomic numbers */
    const double* positions;  /* [n_atoms, 3] */
    const double* cell;       /* [3, 3], rows are the lattice vectors; NULL without any */
    const int32_t* periodic;  /* [3] whether the system repeats along each of them; NULL if along none */
} equicat_system;

/* Atoms with a list of pairs, as programs with a domain of atoms and ghosts have them. The first n_centers atoms have
 * energies and pairs; the others, ghosts, are neighbours only, and get forces. */
typedef struct {
    int64_t n_atoms, n_centers;
    const int32_t* numbers;     /* [n_atoms] atomic numbers */
    const int64_t* first_pair;  /* [n_centers + 1] where the pairs of each centre begin, and where the last ones end */
    const int32_t* neighbor;    /* [n_pairs] index of the other atom; both directions of a pair are listed */
    const double* vectors;      /* [n_pairs, 3] from the centre to the neighbour; those beyond the cutoff add nothing */
} equicat_pairs;

/* Arrays that are NULL are not written. */
typedef struct {
    double energy;
    double virial[9];      /* dE/dstrain, symmetric; over the volume it is the stress as ASE has it */
    double* atom_energies; /* [n_atoms]; 0 for ghosts */
    double* forces;        /* [n_atoms, 3] */
} equicat_results;

/* Opens the model in a folder. `processor` is the kernel to take, one of those that about.json lists, or NULL for the
 * fastest that this processor can run. Returns NULL if that fails. */
equicat_model* equicat_open(const char* folder, const char* processor, char* message);
void equicat_close(equicat_model* model);

double equicat_cutoff(const equicat_model* model);
const char* equicat_processor(const equicat_model* model); /* the kernel that was taken */

/* Return 0, or another number if they failed. n_threads is 0 for all cores that the process may use. Several threads
 * may call them with the same model. */
int equicat_compute(const equicat_model* model, int n_threads, const equicat_system* system, equicat_results* results,
                    char* message);
int equicat_compute_pairs(const equicat_model* model, int n_threads, const equicat_pairs* pairs,
                          equicat_results* results, char* message);

#ifdef __cplusplus
}
#endif
#endif
