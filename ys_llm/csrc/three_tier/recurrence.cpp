// The three-tier recurrence as Python calls it: packing of matrices, and passes over a sequence.

#include "recurrence_backward.h"
#include "recurrence_forward.h"

namespace ys::three_tier {

template <class Real>
void sum_parts(const std::vector<Real>& parts, int64_t n, int64_t offset, int64_t step, void* out) {
  if (!out) return;
  for (int64_t c = 0; c < n; c++) {
    Real total = 0;
    for (size_t at = size_t(offset + c); at < parts.size(); at += size_t(step)) total += parts[at];
    static_cast<Real*>(out)[c] = total;
  }
}

// The grid of threads is laid out inside the parallel region, for as many threads as it really has:
// two regions may differ (OMP_DYNAMIC), and a barrier for threads that do not exist never opens.
template <class Op>
void run_pass(Pass pass, bool is_backward) {
  const int64_t wanted = pass.row_groups * pass.column_groups;
  std::unique_ptr<Run<Op>> run;
  std::vector<std::unique_ptr<Barrier>> groups;
#pragma omp parallel num_threads(int(wanted))
  {
#pragma omp single  // the others wait at its end
    {
      if (omp_get_num_threads() != wanted) pass.row_groups = pass.column_groups = 1;
      run.reset(new Run<Op>(pass));
      for (int64_t i = 0; i < pass.row_groups; i++)
        groups.emplace_back(new Barrier(int(pass.column_groups)));
    }
    const int64_t thread = omp_get_thread_num(), row_group = thread / pass.column_groups;
    if (row_group < pass.row_groups) {
      Worker<Op> worker(*run, *groups[size_t(row_group)], row_group, thread % pass.column_groups);
      if (is_backward) worker.backward();
      else worker.forward();
    }
  }
  if (!is_backward) return;
  void* gains[GAINS] = {pass.d_gain, pass.d_bias, pass.d_summary_scale, pass.d_drive_bias,
                        pass.d_gate_bias};
  for (int64_t i = 0; i < GAINS; i++)
    sum_parts(run->gains, pass.d_state, i * pass.d_state, GAINS * pass.d_state, gains[i]);
  for (int i : {0, 1}) {
    const int64_t R = pass.summaries[i].width;
    if (!pass.summaries[i].interval) continue;
    sum_parts(run->summary_gains[i], R, 0, 2 * R, pass.summaries[i].d_gain);
    sum_parts(run->summary_gains[i], R, R, 2 * R, pass.summaries[i].d_bias);
  }
}

// Packs n matrices, one after the other, from float or double memory.
template <class Op, class Source>
void pack(const Source* source, int64_t n, int64_t step, int64_t step_k, int64_t step_n, int64_t k,
          int64_t columns, Op* packed) {
  const int64_t panels = (columns + NR<Op> - 1) / NR<Op>;
#pragma omp parallel for collapse(2)
  for (int64_t i = 0; i < n; i++)
    for (int64_t j = 0; j < panels; j++)
      pack_panel(source + i * step + j * NR<Op> * step_n, step_k, step_n, k,
                 std::min<int64_t>(NR<Op>, columns - j * NR<Op>),
                 packed + i * packed_size<Op>(k, columns) + j * panel_size<Op>(k));
}

void run(int operands, const Pass& pass, bool is_backward) {
  if (operands == YS_F64) run_pass<double>(pass, is_backward);
  else if (operands == YS_F32) run_pass<float>(pass, is_backward);
  else run_pass<bf16>(pass, is_backward);
}

}  // namespace ys::three_tier

extern "C" {

int64_t ys_packed_size(int operands, int64_t k, int64_t n) {
  return operands == YS_F64   ? ys::packed_size<double>(k, n)
         : operands == YS_F32 ? ys::packed_size<float>(k, n)
                              : ys::packed_size<ys::bf16>(k, n);
}

void ys_pack(int operands, const void* source, int64_t n_matrices, int64_t stride_matrix,
             int64_t stride_k, int64_t stride_n, int64_t k, int64_t n, void* packed) {
  using ys::three_tier::pack;
  if (operands == YS_F64)
    pack(static_cast<const double*>(source), n_matrices, stride_matrix, stride_k, stride_n, k, n,
         static_cast<double*>(packed));
  else if (operands == YS_F32)
    pack(static_cast<const float*>(source), n_matrices, stride_matrix, stride_k, stride_n, k, n,
         static_cast<float*>(packed));
  else
    pack(static_cast<const float*>(source), n_matrices, stride_matrix, stride_k, stride_n, k, n,
         static_cast<ys::bf16*>(packed));
}

void ys_three_tier_forward(int operands, const ys_three_tier_pass* pass) {
  ys::three_tier::run(operands, *pass, false);
}

void ys_three_tier_backward(int operands, const ys_three_tier_pass* pass) {
  ys::three_tier::run(operands, *pass, true);
}

const char* ys_units(void) {
#if defined(__AMX_BF16__)
  if (ys::amx_is_allowed()) return "AMX";
#endif
#if defined(__AVX512BF16__)
  return "AVX512-BF16";
#elif defined(__AVX512F__)
  return "AVX-512";
#else
  return "vectors";
#endif
}
}
