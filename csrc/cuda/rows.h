// The arithmetic of single rows and entries, for a GPU's threads and for the host loops that test it.
#pragma once

#include <cmath>
#include <cstdint>

#include "constants.h"
#include "problem.h"

namespace bissl_fast::cuda {

inline constexpr int64_t kLanes = 64;  // workers that share a row; each takes every 64th entry

// A sum of exponentials, relative to the largest of them: sum * exp(largest / tau).
template <class T>
struct ExpSum {
  T largest;
  double sum;
};

// What is kept of each row: P_ij = exp((s_ij - largest) / tau) * inv_sum, and 1 - P at the partner.
template <class T>
struct Softmax {
  T* largest;
  T* inv_sum;
  T* complement;
};

// A row is divided by max(norm, eps); a NaN stays.
template <class T>
HOST_DEVICE T inverse_norm(double square) {
  const double norm = std::sqrt(square);
  return static_cast<T>(1 / (norm < kNormEps ? kNormEps : norm));
}

// A clamped row was divided by a constant, so its normalisation is linear.
template <class T>
HOST_DEVICE bool is_clamped(T inv_norm) {
  return inv_norm >= static_cast<T>(1 / kNormEps);
}

// One lane's share of a . b.
template <class T>
HOST_DEVICE double dot_of_lane(const T* a, const T* b, int64_t size, int64_t lane) {
  double sum = 0;
  for (int64_t k = lane; k < size; k += kLanes) sum += static_cast<double>(a[k]) * static_cast<double>(b[k]);
  return sum;
}

// The shares of all lanes, always in the same order.
HOST_DEVICE inline double sum_of_lanes(const double* shares) {
  double sum = 0;
  for (int64_t lane = 0; lane < kLanes; ++lane) sum += shares[lane];
  return sum;
}

// One lane's share of the sum over the negatives of `row`, of which `similarities` is the row of S.
template <class T>
HOST_DEVICE ExpSum<T> exp_sum_of_lane(const Problem& problem, const T* similarities, int64_t row, int64_t lane) {
  const T inv_temperature = static_cast<T>(1 / problem.temperature);
  ExpSum<T> found{static_cast<T>(-INFINITY), 0};
  for (int64_t j = lane; j < problem.rows(); j += kLanes) {
    if (!problem.is_negative(row, j)) continue;
    const T similarity = similarities[j];
    if (similarity > found.largest) {
      found.sum = found.sum * std::exp((found.largest - similarity) * inv_temperature) + 1;
      found.largest = similarity;
    } else {
      found.sum += std::exp((similarity - found.largest) * inv_temperature);  // a NaN comes here, and stays
    }
  }
  return found;
}

// From the shares of all lanes: keeps the softmax of row i, writes its log-sum and returns its loss.
template <class T>
HOST_DEVICE double finish_softmax(const Problem& problem, const ExpSum<T>* shares, double positive, int64_t i,
                                  const Softmax<T>& softmax, T* log_sum) {
  T largest = static_cast<T>(positive);
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    if (shares[lane].largest > largest) largest = shares[lane].largest;
  }
  const auto relative = [&](double similarity) {
    return (similarity - static_cast<double>(largest)) / problem.temperature;
  };
  double negatives = 0;
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    if (shares[lane].sum == 0) continue;
    negatives += shares[lane].sum * std::exp(relative(static_cast<double>(shares[lane].largest)));
  }
  const double below = relative(positive);  // <= 0, save for the rounding of `largest`
  const double total = negatives + std::exp(below);
  // log1p keeps the digits of a loss near zero, which a log-sum less the positive would lose.
  const double loss = below > -1 ? std::log1p(negatives * std::exp(-below)) : std::log(total) - below;
  softmax.largest[i] = largest;
  softmax.inv_sum[i] = static_cast<T>(1 / total);
  softmax.complement[i] = static_cast<T>(negatives / total);
  *log_sum = static_cast<T>(loss + positive / problem.temperature);
  return loss;
}

// P_ij of a negative j.
template <class T>
HOST_DEVICE T probability(const Problem& problem, const Softmax<T>& softmax, int64_t i, T similarity) {
  const T inv_temperature = static_cast<T>(1 / problem.temperature);
  return std::exp((similarity - softmax.largest[i]) * inv_temperature) * softmax.inv_sum[i];
}

// 1 / (N tau), the factor of every weight.
template <class T>
HOST_DEVICE T scale_of(const Problem& problem) {
  return static_cast<T>(1 / (static_cast<double>(problem.rows()) * problem.temperature));
}

// W_ij / tau, with W = (P + P^T - 2 Pi) / N.
template <class T>
HOST_DEVICE T weight(const Problem& problem, const Softmax<T>& softmax, int64_t i, int64_t j, T similarity) {
  const T scale = scale_of<T>(problem);
  if (j == problem.partner(i)) return -scale * (softmax.complement[i] + softmax.complement[j]);
  if (!problem.is_negative(i, j)) return 0;
  return scale * (probability(problem, softmax, i, similarity) + probability(problem, softmax, j, similarity));
}

// How the log-sum of a row moves: its tangent r_i, and r_i less the tangent of the positive logit.
template <class T>
struct LogSumTangents {
  T* mean;
  T* excess;
};

// One lane's share of excess_i = sum over negatives of P_ij (Sdot_ij - Sdot_ip): r_i would cancel where P_ip is near 1.
template <class T>
HOST_DEVICE double excess_of_lane(const Problem& problem, const Softmax<T>& softmax, const T* similarities,
                                  const T* tangents, int64_t i, int64_t lane) {
  const T of_positive = tangents[problem.partner(i)];
  double sum = 0;
  for (int64_t j = lane; j < problem.rows(); j += kLanes) {
    if (!problem.is_negative(i, j)) continue;
    sum += static_cast<double>(probability(problem, softmax, i, similarities[j])) *
           static_cast<double>(tangents[j] - of_positive);
  }
  return sum;
}

// d(W_ij / tau) along the tangent, `tangent` being Sdot_ij.
template <class T>
HOST_DEVICE T weight_tangent(const Problem& problem, const Softmax<T>& softmax, const LogSumTangents<T>& log_sums,
                             int64_t i, int64_t j, T similarity, T tangent) {
  const T scale = scale_of<T>(problem);
  if (j == problem.partner(i)) {
    return -scale * ((1 - softmax.complement[i]) * log_sums.excess[i] +
                     (1 - softmax.complement[j]) * log_sums.excess[j]);
  }
  if (!problem.is_negative(i, j)) return 0;
  return scale * (probability(problem, softmax, i, similarity) * (tangent - log_sums.mean[i]) +
                  probability(problem, softmax, j, similarity) * (tangent - log_sums.mean[j]));
}

}  // namespace bissl_fast::cuda
