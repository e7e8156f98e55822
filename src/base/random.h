// Counter-based random numbers: a number is a function of (run seed, step, stream, global element index) and of nothing else, so
// that results do not depend on how many ranks or threads there are, nor on the order of evaluation. The reference executor,
// the kernels and attention dropout all call this.
#pragma once
#include <stdint.h>

// The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection whose output bits each depend on every input bit.
static inline uint64_t random_mix(uint64_t z) {
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

// What the numbers of one stream in one step have in common; compute it once outside a loop.
static inline uint64_t random_key(uint64_t run_seed, int64_t step, int64_t stream) {
    uint64_t z = random_mix(run_seed + UINT64_C(0x9E3779B97F4A7C15));
    z = random_mix(z ^ ((uint64_t)step + UINT64_C(0xD1B54A32D192ED03)));
    return random_mix(z ^ ((uint64_t)stream + UINT64_C(0x8CB92BA72F3D8DD7)));
}

// Uniform in [0, 1) with 24 bits, so that float and double hold the same number exactly.
static inline double random_at(uint64_t key, int64_t index) {
    uint64_t z = random_mix(key + ((uint64_t)index + 1) * UINT64_C(0x9E3779B97F4A7C15));
    return (double)(int64_t)(z >> 40) * 0x1p-24;
}

static inline double random_uniform(uint64_t run_seed, int64_t step, int64_t stream, int64_t index) {
    return random_at(random_key(run_seed, step, stream), index);
}
