// The kernels, compiled once per instruction set (LOWPREC_ISA names the build).
#include "coding.h"
#include "elementwise.h"
#include "gemm.h"
#include "table.h"

namespace lowprec {
namespace LOWPREC_ISA {

extern const Kernels kernels;
const Kernels kernels = {
    coding,
    round_array<Binary32>,
    round_array<Binary64>,
    stochastic_array<Binary32>,
    stochastic_array<Binary64>,
    matmul<float>,
    matmul<double>,
};

}  // namespace LOWPREC_ISA
}  // namespace lowprec
