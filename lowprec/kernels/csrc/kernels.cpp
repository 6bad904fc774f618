// The kernels, compiled once per instruction set (LOWPREC_ISA names the build).
#include "choosing.h"
#include "coding.h"
#include "descent.h"
#include "elementwise.h"
#include "gemm.h"
#include "level_maps.h"
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
    level_array<Binary32>,
    level_array<Binary64>,
    choose_levels<Binary32>,
    choose_levels<Binary64>,
    descent_array<Binary32>,
    descent_array<Binary64>,
};

}  // namespace LOWPREC_ISA
}  // namespace lowprec
