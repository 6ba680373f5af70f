/* Energy and forces of a slab of copper with a model that `equicat export RUN mine --format library` wrote.
 *
 *     cc energy.c -I mine mine/libequicat_model.so -Wl,-rpath,mine -o energy && ./energy mine
 */
#include <stdio.h>

#include "equicat_model.h"

#define N 12

int main(int n_words, char** words) {
    const double a = 2.55, spacing = 2.08, height = 0.8660254037844386 * a;
    const double cell[9] = {2 * a, 0, 0, a, 2 * height, 0, 0, 0, 20};
    const int32_t periodic[3] = {1, 1, 0};
    int32_t numbers[N];
    double positions[3 * N], forces[3 * N];
    for (int i = 0; i < N; i++) {
        const int layer = i / 4, column = i % 2, row = i / 2 % 2;
        numbers[i] = 29;
        positions[3 * i] = (column + 0.5 * row + 0.5 * layer) * a;
        positions[3 * i + 1] = (row + layer / 3.0) * height;
        positions[3 * i + 2] = layer * spacing;
    }
    char message[EQUICAT_MESSAGE];
    equicat_model* model = equicat_open(n_words > 1 ? words[1] : ".", NULL, message);
    if (!model) return fprintf(stderr, "%s\n", message), 1;
    const equicat_system system = {N, numbers, positions, cell, periodic};
    equicat_results results = {.forces = forces};
    if (equicat_compute(model, 1, &system, &results, message)) return fprintf(stderr, "%s\n", message), 1;
    printf("kernel %s, cutoff %g\nenergy %.9f eV\n", equicat_processor(model), equicat_cutoff(model), results.energy);
    for (int i = 0; i < N; i++)
        printf("atom %2d: %12.8f %12.8f %12.8f eV/A\n", i, forces[3 * i], forces[3 * i + 1], forces[3 * i + 2]);
    equicat_close(model);
    return 0;
}
