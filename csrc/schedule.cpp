#include "schedule.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <stdexcept>

namespace df {
namespace {

constexpr double kHalfPi = 1.57079632679489661923;
using Params = std::map<std::string, double>;

[[noreturn]] void bad(const std::string& message) { throw std::invalid_argument(message); }

std::size_t checked_length(std::int64_t n_steps) {
    if (n_steps < 1 || n_steps > kMaxSteps) {
        bad("n_steps: got " + std::to_string(n_steps) + "; accepted: 1 to " + std::to_string(kMaxSteps));
    }
    return static_cast<std::size_t>(n_steps);
}

// Every element in [0, 1]; written so that NaN fails.
void check_unit(const char* what, const std::vector<double>& values) {
    for (std::size_t i = 0; i < values.size(); ++i) {
        if (!(values[i] >= 0.0 && values[i] <= 1.0)) {
            bad(std::string(what) + ": got " + std::to_string(values[i]) + " at index " + std::to_string(i) +
                "; accepted: numbers in [0, 1]");
        }
    }
}

// numpy.linspace, operation for operation: i * step + start, and the last value is `stop` itself.
std::vector<double> linspace(double start, double stop, std::size_t n) {
    std::vector<double> out(n, start);
    if (n == 1) return out;
    const double step = (stop - start) / static_cast<double>(n - 1);
    for (std::size_t i = 0; i < n; ++i) out[i] = static_cast<double>(i) * step + start;
    out[n - 1] = stop;
    return out;
}

// The parameters of one schedule, taken by name; anything missing, out of range or left over is an error.
class Taken {
  public:
    explicit Taken(const Params& params) : left_(params) {}

    double take(const char* name, double high, bool high_included) {
        const auto it = left_.find(name);
        if (it == left_.end()) bad(std::string("params: '") + name + "' is missing");
        const double v = it->second;
        left_.erase(it);
        if (!(v > 0.0 && (v < high || (high_included && v == high)))) {
            bad(std::string(name) + ": got " + std::to_string(v) + "; accepted: numbers in (0, " +
                std::to_string(high) + (high_included ? "]" : ")"));
        }
        return v;
    }

    void finish() const {
        if (!left_.empty()) bad("params: '" + left_.begin()->first + "' is not a parameter of this schedule");
    }

  private:
    Params left_;
};

std::vector<double> squared_linspace(double low, double high, std::size_t n) {
    std::vector<double> b = linspace(std::sqrt(low), std::sqrt(high), n);
    for (double& v : b) v = v * v;
    return b;
}

// Ho et al. 2020, diffusion_utils.py: a linear ramp over the first part, then constant.
std::vector<double> warmup(double low, double high, std::size_t n, double fraction) {
    std::vector<double> b(n, high);
    const auto k = static_cast<std::size_t>(static_cast<double>(n) * fraction);
    if (k > 0) {
        const std::vector<double> ramp = linspace(low, high, k);
        std::copy(ramp.begin(), ramp.end(), b.begin());
    }
    return b;
}

// low + (high - low) * sigmoid(x), x evenly spaced over [-reach, reach].
std::vector<double> sigmoid(double low, double high, std::size_t n, double reach) {
    std::vector<double> b = linspace(-reach, reach, n);
    for (double& v : b) v = 1.0 / (1.0 + std::exp(-v)) * (high - low) + low;
    return b;
}

std::vector<double> sine_squared(double low, double high, std::size_t n) {
    std::vector<double> b = linspace(0.0, kHalfPi, n);
    for (double& v : b) {
        const double sine = std::sin(v);
        v = sine * sine * (high - low) + low;
    }
    return b;
}

// Nichol & Dhariwal 2021, eq. 17: abar(u) = cos^2(angle(u)), beta = 1 - abar(next) / abar(this).
// Written as sin(q - p) sin(q + p) / cos^2(p), which is the same number without the cancellation of 1 -
// ratio.
std::vector<double> cosine(double s, double max_beta, std::size_t n) {
    std::vector<double> b(n);
    const double scale = kHalfPi / (1.0 + s);
    const double count = static_cast<double>(n);
    for (std::size_t i = 0; i < n; ++i) {
        const double p = (static_cast<double>(i) / count + s) * scale;
        const double q = (static_cast<double>(i + 1) / count + s) * scale;
        const double c = std::cos(p);
        b[i] = std::min(std::sin(q - p) * std::sin(q + p) / (c * c), max_beta);
    }
    b[n - 1] = max_beta;  // abar(1) = 0 exactly, so the unclipped last beta is 1; the float cosine misses it
    return b;
}

}  // namespace

std::vector<double> schedule_betas(const std::string& name, std::int64_t n_steps, const Params& params) {
    const std::size_t n = checked_length(n_steps);
    Taken taken(params);
    std::vector<double> betas;
    if (name == "constant") {
        betas.assign(n, taken.take("beta", 1.0, false));
    } else if (name == "cosine") {
        const double s = taken.take("s", 1.0, false);
        betas = cosine(s, taken.take("max_beta", 1.0, true), n);
    } else {
        const double low = taken.take("beta_start", 1.0, false);
        const double high = taken.take("beta_end", 1.0, false);
        if (name == "linear") {
            betas = linspace(low, high, n);
        } else if (name == "quadratic" || name == "scaled_linear") {  // one formula, known under two names
            betas = squared_linspace(low, high, n);
        } else if (name == "warmup10") {
            betas = warmup(low, high, n, 0.1);
        } else if (name == "warmup50") {
            betas = warmup(low, high, n, 0.5);
        } else if (name == "sigmoid") {
            betas = sigmoid(low, high, n, 6.0);
        } else if (name == "sigmoid_ramp") {
            betas = sigmoid(low, high, n, 10.0);
        } else if (name == "sine_squared") {
            betas = sine_squared(low, high, n);
        } else {
            bad("name: '" + name + "' is not a known schedule");
        }
    }
    taken.finish();
    return betas;
}

std::vector<double> alphas_cumprod(const std::vector<double>& betas) {
    check_unit("betas", betas);
    std::vector<double> out(betas.size());
    double product = 1.0;
    for (std::size_t i = 0; i < betas.size(); ++i) out[i] = product *= 1.0 - betas[i];
    return out;
}

std::vector<double> log_snr(const std::vector<double>& alphas_cumprod) {
    check_unit("alphas_cumprod", alphas_cumprod);
    std::vector<double> out(alphas_cumprod.size());
    for (std::size_t i = 0; i < out.size(); ++i) {
        out[i] = std::log(alphas_cumprod[i]) - std::log1p(-alphas_cumprod[i]);
    }
    return out;
}

std::vector<double> zero_terminal_snr(const std::vector<double>& betas) {
    std::vector<double> abar = alphas_cumprod(betas);
    if (abar.size() < 2 || !(abar.front() > abar.back())) {
        bad("betas: got a schedule whose first and last alphas_cumprod do not differ; accepted: at least 2 "
            "betas "
            "with alphas_cumprod falling");
    }
    const double first = std::sqrt(abar.front());
    const double last = std::sqrt(abar.back());
    const double scale = first / (first - last);
    for (double& v : abar) {
        const double root = (std::sqrt(v) - last) * scale;
        v = root * root;
    }
    std::vector<double> out(abar.size());
    out[0] = betas[0];  // Algorithm 1 keeps the first alpha; taking it as is spares a rounding
    for (std::size_t i = 1; i < out.size(); ++i) out[i] = 1.0 - abar[i] / abar[i - 1];
    return out;
}

std::vector<std::int64_t> spaced_timesteps(const std::string& name, std::int64_t n_train,
                                           std::int64_t steps) {
    checked_length(n_train);
    if (steps < 1 || steps > n_train) {
        bad("steps: got " + std::to_string(steps) + "; accepted: 1 to " + std::to_string(n_train));
    }
    std::vector<std::int64_t> out(static_cast<std::size_t>(steps));
    const auto n = static_cast<double>(n_train);
    // Halves are rounded to even and each value is formed as NumPy forms it, so that lists agree with the
    // ones that models were tuned with, also where the exact value ends in .5 and the float does not.
    if (name == "leading") {
        const std::int64_t ratio = n_train / steps;
        for (std::int64_t i = 0; i < steps; ++i) out[i] = (steps - 1 - i) * ratio;
    } else if (name == "trailing") {
        const double delta = (n - n / static_cast<double>(steps)) - n;  // numpy.arange's increment
        for (std::int64_t i = 0; i < steps; ++i) {
            out[i] = static_cast<std::int64_t>(std::nearbyint(n + static_cast<double>(i) * delta)) - 1;
        }
    } else if (name == "linspace") {
        const std::vector<double> values = linspace(0.0, n - 1.0, static_cast<std::size_t>(steps));
        for (std::int64_t i = 0; i < steps; ++i) {
            out[i] =
                static_cast<std::int64_t>(std::nearbyint(values[static_cast<std::size_t>(steps - 1 - i)]));
        }
    } else {
        bad("spacing: '" + name + "' is not one of leading, trailing, linspace");
    }
    return out;
}

}  // namespace df
