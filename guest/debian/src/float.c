/* float: arithmetic of doubles and floats in every rounding mode, and a sum of its bits.
 *
 * usage: float [ROUNDS]       (a round is about 0.1 G instructions)
 *
 * Linear equations by elimination (multiply, fused multiply-add, divide), a chaotic map
 * (add, multiply), square roots and conversions. The line that it prints
 *
 *   FLOAT rounds=<rounds> sum=<checksum> flags=<exceptions raised>
 *
 * must be the same on every machine.
 */
#include <fenv.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SIZE 96
#define MAP_STEPS 500000

static double matrix[SIZE][SIZE + 1];

static uint64_t mix(uint64_t sum, double value)
{
    uint64_t bits;

    memcpy(&bits, &value, sizeof bits);
    return (sum ^ bits) * 0x9e3779b97f4a7c15u + (sum >> 29);
}

static uint64_t eliminate(uint64_t sum, int round)
{
    for (int i = 0; i < SIZE; i++)
        for (int j = 0; j <= SIZE; j++)
            matrix[i][j] = 1.0 / (i + j + round + 1) + (i == j);
    for (int pivot = 0; pivot < SIZE; pivot++)
        for (int row = pivot + 1; row < SIZE; row++) {
            double factor = matrix[row][pivot] / matrix[pivot][pivot];
            for (int column = pivot; column <= SIZE; column++)
                matrix[row][column] = fma(-factor, matrix[pivot][column], matrix[row][column]);
        }
    for (int row = 0; row < SIZE; row++)
        sum = mix(sum, matrix[row][SIZE]);
    return sum;
}

static uint64_t wander(uint64_t sum, int round)
{
    volatile float narrow = 0;
    double x = 0.1 + round * 1e-3;

    for (int step = 0; step < MAP_STEPS; step++) {
        x = 3.99 * x * (1.0 - x);
        if (step % 16 == 0) {
            narrow = (float)sqrt(x) + (float)(int64_t)(x * 1e9);
            sum = mix(sum, narrow);
        }
    }
    return mix(sum, x);
}

int main(int argc, char **argv)
{
    static const int modes[] = {FE_TONEAREST, FE_TOWARDZERO, FE_UPWARD, FE_DOWNWARD};
    int rounds = argc > 1 ? atoi(argv[1]) : 1;
    uint64_t sum = 0;

    for (int round = 0; round < rounds; round++)
        for (int mode = 0; mode < 4; mode++) {
            fesetround(modes[mode]);
            sum = eliminate(sum, round);
            sum = wander(sum, round);
        }
    printf("FLOAT rounds=%d sum=%016llx flags=%x\n", rounds, (unsigned long long)sum,
           fetestexcept(FE_ALL_EXCEPT));
    return 0;
}
