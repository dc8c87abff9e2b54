// What a mixer provides for decoding: one token of each of n sequences, run by a team of threads.
//
// A file csrc/<mixer>/step.cpp defines the functions of MixerStep and registers them under the
// mixer's name with a static Registration. Nothing else names it.

#pragma once

#include <string>

#include "gemv.h"

namespace ys {

// n vectors, one after the other, each aligned to a cache line.
template <class Real>
struct Rows {
  Real* base = nullptr;
  int64_t stride = 0;
  Real* operator[](int64_t i) const { return base + i * stride; }
  Vectors<Real> all(int64_t n) const {
    Vectors<Real> vectors;
    for (int64_t i = 0; i < n; i++) vectors.add((*this)[i]);
    return vectors;
  }
};

// A vector of n numbers takes this many, so that the next is aligned.
inline int64_t padded(int64_t n) { return (n + 15) / 16 * 16; }

// Hands out rows of scratch memory.
template <class Real>
struct Scratch {
  Real* next;
  int64_t n;
  Rows<Real> take(int64_t width) {
    Rows<Real> rows{next, padded(width)};
    next += n * rows.stride;
    return rows;
  }
};

struct Team {
  Barrier& barrier;
  int64_t thread, threads;
  // This thread's part of n outputs.
  Range part(int64_t n) const { return share(n, 16, threads, thread); }
};

// The arguments of a mixer's step, the same in all threads of the team except for `own`. When the
// step is called, x is complete. When it returns, this thread's part of out is written; the caller
// waits for the team. out may be the memory of x: between the last read of x and the first write of
// out there must be a barrier.
template <class Real>
struct StepArguments {
  int64_t n;
  const int64_t* positions;     // tokens read before, of each sequence
  const Vectors<Real>& states;  // of this layer, of each sequence
  const Vectors<Real>& x;       // d_model numbers each
  const Vectors<Real>& out;
  Put put;               // how the output is combined with out
  Scratch<Real> shared;  // the same memory for the whole team
  Scratch<Real> own;     // this thread's memory
  Team team;
};

template <class Real>
struct MixerStep {
  int64_t (*state_size)(const void* weights);      // numbers
  int64_t (*shared_scratch)(const void* weights);  // numbers for each sequence, padded
  int64_t (*own_scratch)(const void* weights);     // numbers for each sequence and thread, padded
  void (*step)(const void* weights, const StepArguments<Real>& arguments);
};

struct MixerKind {
  std::string name;
  MixerStep<float> in_float;
  MixerStep<double> in_double;
};

// In trunk_step.cpp: a static variable of an inline function would be shared by all libraries that
// a process loads.
std::vector<MixerKind>& mixer_kinds();
template <class Real>
const MixerStep<Real>& mixer_step(int64_t kind) {
  const MixerKind& found = mixer_kinds()[size_t(kind)];
  if constexpr (std::is_same<Real, float>::value) return found.in_float;
  else return found.in_double;
}

struct Registration {
  Registration(const char* name, MixerStep<float> in_float, MixerStep<double> in_double) {
    mixer_kinds().push_back({name, in_float, in_double});
  }
};

}  // namespace ys
