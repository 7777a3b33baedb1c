// The functions that the module offers, by name, with arguments and results of a few types.
#pragma once
#include <array>
#include <functional>
#include <map>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "bindings/arrays.h"

namespace hymba::emulator {

using Value =
    std::variant<std::monostate, bool, int64_t, double, std::string, Array, std::vector<std::string>>;
using Values = std::vector<Value>;

class Registry {
 public:
  using Function = std::function<Values(const Values&)>;

  // A function of Array, OptionalArray, bool, integers, double, std::string, or std::optional of them. Its
  // result is void, one of them, or a pair or tuple of them.
  template <class Result, class... Parameters>
  void def(const std::string& name, Result (*function)(Parameters...)) {
    functions_[name] = [name, function](const Values& arguments) {
      if (arguments.size() != sizeof...(Parameters))
        throw std::invalid_argument(name + " takes " + std::to_string(sizeof...(Parameters)) +
                                    " arguments, got " + std::to_string(arguments.size()));
      return call(function, arguments, std::index_sequence_for<Parameters...>());
    };
  }

  const std::map<std::string, Function>& functions() const { return functions_; }

 private:
  template <class T>
  struct IsOptional : std::false_type {};
  template <class T>
  struct IsOptional<std::optional<T>> : std::true_type {};

  template <class T>
  static T from_value(const Value& value) {
    if constexpr (IsOptional<T>::value) {
      if (std::holds_alternative<std::monostate>(value)) return std::nullopt;
      return from_value<typename T::value_type>(value);
    } else if constexpr (std::is_same_v<T, double>) {
      if (const auto* whole = std::get_if<int64_t>(&value)) return static_cast<double>(*whole);
      return std::get<double>(value);
    } else if constexpr (std::is_integral_v<T> && !std::is_same_v<T, bool>) {
      return static_cast<T>(std::get<int64_t>(value));
    } else {
      return std::get<T>(value);
    }
  }

  template <class T>
  static Value to_value(const std::optional<T>& value) {
    return value ? Value(*value) : Value();
  }
  template <class T>
  static Value to_value(const T& value) {
    return value;
  }
  template <class... T>
  static Values to_values(const std::tuple<T...>& values) {
    return std::apply([](const auto&... each) { return Values{to_value(each)...}; }, values);
  }
  template <class A, class B>
  static Values to_values(const std::pair<A, B>& values) {
    return {to_value(values.first), to_value(values.second)};
  }
  template <class T>
  static Values to_values(const T& value) {
    return {to_value(value)};
  }

  template <class Result, class... Parameters, size_t... kIndex>
  static Values call(Result (*function)(Parameters...), const Values& arguments,
                     std::index_sequence<kIndex...>) {
    if constexpr (std::is_void_v<Result>) {
      function(from_value<std::remove_cvref_t<Parameters>>(arguments[kIndex])...);
      return {};
    } else {
      return to_values(function(from_value<std::remove_cvref_t<Parameters>>(arguments[kIndex])...));
    }
  }

  std::map<std::string, Function> functions_;
};

}  // namespace hymba::emulator
