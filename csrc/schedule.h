// What a noise schedule needs, in double precision: betas, running products, log-SNR, the rescaling to zero
// terminal SNR and the spacing of timesteps.  Pure functions on the standard library alone; every one throws
// std::invalid_argument on input that has no meaning.  diffusion_fast/schedules.py and solvers/spacing.py
// hold the float64 twins (`*_ref`) that the tests compare with; the operations are in the same order in both.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace df {

// Longest schedule: the row count of a plan is limited to the same number.
constexpr std::int64_t kMaxSteps = std::int64_t{1} << 20;

// Betas of a named schedule, n_steps of them.  `params` must hold exactly the parameters of that schedule:
//   linear, quadratic, scaled_linear, warmup10, warmup50, sigmoid, sigmoid_ramp, sine_squared:
//       beta_start, beta_end, each in (0, 1)
//   constant: beta in (0, 1)
//   cosine: s in (0, 1), max_beta in (0, 1] (1 = unclipped; then the last beta is exactly 1)
std::vector<double> schedule_betas(const std::string& name, std::int64_t n_steps,
                                   const std::map<std::string, double>& params);

// Running product of 1 - beta.  Betas must lie in [0, 1].
std::vector<double> alphas_cumprod(const std::vector<double>& betas);

// log(abar / (1 - abar)); -inf where abar = 0, +inf where abar = 1.
std::vector<double> log_snr(const std::vector<double>& alphas_cumprod);

// Betas rescaled so that the last alphas_cumprod is exactly 0 and the first is kept
// (Lin et al. 2024, "Common Diffusion Noise Schedules and Sample Steps are Flawed", Algorithm 1).
std::vector<double> zero_terminal_snr(const std::vector<double>& betas);

// `steps` of the timesteps 0 .. n_train-1 in the order they run (descending), spaced "leading", "trailing" or
// "linspace" (Table 2 of the same paper), with steps_offset = 0.
std::vector<std::int64_t> spaced_timesteps(const std::string& name, std::int64_t n_train, std::int64_t steps);

}  // namespace df
