// y = W x for a few vectors x at once, as decoding needs: each weight is read from memory once.
//
// W is packed (inference/decoder_weights.py). The outputs of a group are divided into panels as
// wide as a vector, each contiguous and padded with zeros: panel[k][output]. An output is the sum
// of its products in the order of k, however many vectors and threads there are: each sequence gets
// the same bits as when it is decoded alone.

#pragma once

#include "common.h"

namespace ys {

// One vector for each sequence, or for some of them.
template <class Real>
struct Vectors {
  Real* of[YS_MAX_SEQUENCES];
  int64_t n = 0;
  void add(Real* vector) { of[n++] = vector; }
};
enum class Put { SET, ADD, MULTIPLY };  // how a result is combined with the output's old value

// These outputs of W x + bias, for each x, combined with out. It is fastest where the vectors x are
// equally far apart.
void apply(const ys_linear& linear, Range outputs, const Vectors<float>& x,
           const Vectors<float>& out, Put put = Put::SET);
void apply(const ys_linear& linear, Range outputs, const Vectors<double>& x,
           const Vectors<double>& out, Put put = Put::SET);

}  // namespace ys
