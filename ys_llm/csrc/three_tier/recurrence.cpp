// The three-tier recurrence as Python calls it: packing of matrices, and passes over a sequence.

#include "recurrence_back.h"
#include "recurrence_forward.h"

namespace ys {

template <class Real>
void add_up_parts(const std::vector<Real>& parts, int64_t n, int64_t offset, int64_t step,
                  void* out) {
  if (!out) return;
  for (int64_t c = 0; c < n; c++) {
    Real total = 0;
    for (size_t at = size_t(offset + c); at < parts.size(); at += size_t(step)) total += parts[at];
    static_cast<Real*>(out)[c] = total;
  }
}

template <class Op>
void run_pass(Pass pass, bool back) {
  const int threads = int(pass.row_groups * pass.column_groups);
#pragma omp parallel num_threads(threads)
  {
#pragma omp master
    if (omp_get_num_threads() != threads) pass.row_groups = pass.column_groups = 1;
  }
  Run<Op> run(pass);
  std::vector<std::unique_ptr<Barrier>> groups;
  for (int64_t i = 0; i < pass.row_groups; i++)
    groups.emplace_back(new Barrier(int(pass.column_groups)));
#pragma omp parallel num_threads(int(pass.row_groups * pass.column_groups))
  {
    const int64_t thread = omp_get_thread_num(), rg = thread / pass.column_groups,
                  cg = thread % pass.column_groups;
    Worker<Op> worker(run, *groups[size_t(rg)], rg, cg);
    if (back) worker.backward();
    else worker.forward();
  }
  if (!back) return;
  void* gains[GAINS] = {pass.d_gain, pass.d_bias, pass.d_entry, pass.d_drive_bias};
  for (int64_t i = 0; i < GAINS; i++)
    add_up_parts(run.gains, pass.d_state, i * pass.d_state, GAINS * pass.d_state, gains[i]);
  for (int i : {0, 1}) {
    const int64_t R = pass.tiers[i].width;
    if (!pass.tiers[i].every) continue;
    add_up_parts(run.tier_gains[i], R, 0, 2 * R, pass.tiers[i].d_gain);
    add_up_parts(run.tier_gains[i], R, R, 2 * R, pass.tiers[i].d_bias);
  }
}

// Panels of n matrices one after another, from Real or double memory.
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

}  // namespace ys

extern "C" {

enum Operands { F64 = 0, F32 = 1, BF16 = 2 };

int64_t ys_packed_size(int operands, int64_t k, int64_t n) {
  return operands == BF16  ? ys::packed_size<ys::bf16>(k, n)
         : operands == F32 ? ys::packed_size<float>(k, n)
                           : ys::packed_size<double>(k, n);
}

// `n` matrices K x N (numbers apart: `step`) with the given steps between rows and columns.
void ys_pack(int operands, const void* source, int64_t n, int64_t step, int64_t step_k,
             int64_t step_n, int64_t k, int64_t columns, void* packed) {
  if (operands == F64)
    ys::pack(static_cast<const double*>(source), n, step, step_k, step_n, k, columns,
             static_cast<double*>(packed));
  else if (operands == F32)
    ys::pack(static_cast<const float*>(source), n, step, step_k, step_n, k, columns,
             static_cast<float*>(packed));
  else
    ys::pack(static_cast<const float*>(source), n, step, step_k, step_n, k, columns,
             static_cast<ys::bf16*>(packed));
}

void ys_recurrence(int operands, const ys::Pass* pass, int back) {
  if (operands == F64) ys::run_pass<double>(*pass, back);
  else if (operands == F32) ys::run_pass<float>(*pass, back);
  else ys::run_pass<ys::bf16>(*pass, back);
}

// Which units the bfloat16 products run on.
const char* ys_units() {
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
