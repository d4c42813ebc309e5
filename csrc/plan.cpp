#include "plan.h"

#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

namespace df {
namespace {

[[noreturn]] void fail(const std::string& what) { throw std::invalid_argument("plan: " + what); }

void require(bool ok, const char* what) {
    if (!ok) fail(what);
}

// Bounded cursor over the bytes: every section is checked against what is left before it is copied.
struct Reader {
    const uint8_t* at;
    size_t left;

    template <class T>
    std::vector<T> take(uint64_t count, const char* what) {
        if (count > left / sizeof(T)) fail(std::string("truncated in ") + what);
        std::vector<T> out(count);
        if (count) std::memcpy(out.data(), at, count * sizeof(T));
        at += count * sizeof(T);
        left -= count * sizeof(T);
        return out;
    }
};

// Values that no op writes: x, and the context where there is one.
uint32_t inputs(const PlanHeader& h) { return h.n_context ? 2 : 1; }

void check_header(const PlanHeader& h) {
    require(std::memcmp(h.magic, "DFPLAN\r\n", 8) == 0, "magic is not DFPLAN");
    require(h.version == kPlanVersion, "version is not 3");
    require(h.dim >= 1 && h.dim <= kMaxDim, "dim is not in 1..256");
    require(h.n_rows >= 1 && h.n_rows <= kMaxRows, "n_rows is not in 1..2^20");
    require(h.n_ops >= 1 && h.n_ops <= kMaxOps, "n_ops is not in 1..256");
    require(h.n_tables >= 1 && h.n_tables <= kMaxTables, "n_tables is not in 1..2^20");
    require(h.n_classes <= kMaxTables, "n_classes is above 2^20");
    require(h.n_context <= kMaxWidth, "n_context is above 2048");
    require(h.n_values > inputs(h) && h.n_values <= h.n_ops + inputs(h), "n_values does not fit n_ops");
    require(h.out_value >= inputs(h) && h.out_value < h.n_values, "out_value names no computed value");
    require(h.n_prologue <= h.n_ops, "n_prologue is above n_ops");
    require((h.terms & ~uint32_t(kTermsAll)) == 0, "terms has unknown bits");
    require(h.branches == 1 || h.branches == 2, "branches is not 1 or 2");
    require(h.branches == 1 || h.n_classes >= 2 || h.null_context >= 0,
            "guidance needs a class beside the null class, or a null context");
    require(h.null_context == -1 || (h.n_context > 0 && h.branches == 2),
            "a null context without context, or with one branch");
    require(h.reserved == 0, "the reserved header field is not zero");
}

uint32_t terms_of(const StepRow& r) {
    uint32_t t = 0;
    const auto set = [&t](bool used, uint32_t bit) { t |= used ? bit : 0u; };
    set(r.c_in != 1.0f, kTermCin);
    set(r.p_x != 0.0f, kTermPx);
    set(r.p_F != 0.0f, kTermPF);
    set(!std::isinf(r.clip), kTermClip);
    set(r.a != 0.0f, kTermA);
    set(r.b != 0.0f, kTermB);
    set(r.e != 0.0f, kTermE);
    set(r.c1 != 0.0f, kTermC1);
    set(r.c2 != 0.0f, kTermC2);
    set(r.c3 != 0.0f, kTermC3);
    set(r.s != 0.0f, kTermS);
    set(r.flags & kPush, kTermPush);
    return t;
}

void check_rows(const Plan& p) {
    uint32_t terms = 0;
    for (const StepRow& r : p.rows) {
        const float coefficients[] = {r.c_in, r.p_x, r.p_F, r.a,        r.b,      r.e,    r.c1,
                                      r.c2,   r.c3,  r.s,   r.guidance, r.signal, r.noise};
        for (float c : coefficients) require(std::isfinite(c), "a row coefficient is not finite");
        require(r.clip > 0.0f, "a row's clip is not positive");  // NaN fails too
        require(r.rescale >= 0.0f && r.rescale <= 1.0f, "a row's rescale is not in 0..1");
        require(r.quantile >= 0.0f && r.quantile <= 1.0f, "a row's quantile is not in 0..1");
        require(r.quantile == 0.0f || r.clip >= 1.0f, "a row with a quantile has a clip below 1");
        require(r.table < p.header.n_tables, "a row's table is not below n_tables");
        require((r.flags & ~uint32_t(kEval | kPush)) == 0, "a row has unknown flags");
        require((r.flags & kEval) || (r.p_F == 0.0f && r.e == 0.0f), "a row without eval uses F");
        require(r.reserved[0] == 0 && r.reserved[1] == 0, "reserved row fields are not zero");
        terms |= terms_of(r);
    }
    require(terms == p.header.terms, "terms does not match the rows");
}

// An array of `count` x `width` floats at `offset` of the blob: inside it, and finite.
void check_array(const Plan& p, int64_t offset, uint64_t count, uint64_t width, const char* what) {
    if (offset == -1) return;
    const uint64_t size = count * width;  // below 2^40 and 2^11: no overflow
    if (offset < 0 || uint64_t(offset) > p.blob.size() || size > p.blob.size() - uint64_t(offset))
        fail(std::string(what) + " lies outside the blob");
    for (uint64_t i = 0; i < size; ++i)
        if (!std::isfinite(p.blob[size_t(offset) + i])) fail(std::string(what) + " is not finite");
}

// How much of each value has been written, and what the op may read.
struct Values {
    const Plan& p;
    std::vector<uint32_t> filled;

    explicit Values(const Plan& plan) : p(plan), filled(plan.header.n_values, 0) {
        for (uint32_t i = 0; i < inputs(plan.header); ++i) filled[i] = plan.widths[i];
    }

    uint32_t width(uint32_t value) const {
        require(value < p.header.n_values, "an op names a value that does not exist");
        return p.widths[value];
    }

    void read(uint32_t value, uint32_t n) const {
        require(width(value) == n, "an op's widths differ from its values'");
        require(filled[value] == n, "an op reads a value not written yet");
    }

    // Parts of a value are written in ascending order, whole values at once.
    void write(uint32_t value, uint32_t offset, uint32_t n) {
        require(n >= 1 && n <= width(value) && offset == filled[value] && offset <= width(value) - n,
                "an op writes a value written already, or leaves a gap");
        filled[value] += n;
    }
};

void check_arrays(const Plan& p, const TileOp& op) {
    const bool linear = OpKind(op.kind) == OpKind::kLinear, table = OpKind(op.kind) == OpKind::kTable,
               norm = OpKind(op.kind) == OpKind::kNorm, gather = OpKind(op.kind) == OpKind::kGather;
    require(linear || norm || gather || op.weight == -1, "an op of this kind has no weight");
    require(!(linear || gather) || op.weight >= 0, "an op has no weight");
    require(linear || table || norm || op.bias == -1, "an op of this kind has no bias");
    require(linear || table || (op.step_table == -1 && op.class_table == -1),
            "an op of this kind has no tables");
    require(op.class_table == -1 || p.header.n_classes > 0, "a class table without classes");
    check_array(p, op.weight, linear ? op.n_out : 1,
                gather   ? op.n_in
                : linear ? op.n_in
                         : op.n_out,
                "a weight");
    check_array(p, op.bias, 1, op.n_out, "a bias");
    check_array(p, op.step_table, p.header.n_tables, op.n_out, "a step table");
    const bool joint = table && op.function == uint32_t(TableFunction::kJoint);
    require(!joint || (op.class_table >= 0 && op.bias == -1 && op.step_table == -1),
            "a joint table has one array");
    check_array(p, op.class_table, uint64_t(p.header.n_classes) * (joint ? p.header.n_tables : 1), op.n_out,
                "a class table");
}

// n_in: features read (kGather: written), n_out: features of dst.
void check_op(const Plan& p, const TileOp& op, Values& values) {
    require(std::isfinite(op.param), "an op's parameter is not finite");
    require(op.n_out == values.width(op.dst), "an op's widths differ from its values'");
    const auto function_below = [&op](uint32_t count) {
        require(op.function < count, "an op has an unknown function");
    };
    const auto function_known = [&] {
        function_below(uint32_t(Function::kCount));
        require(Function(op.function) != Function::kExponential || op.param > 0.0f, "a base is not positive");
    };
    bool extra = false;
    switch (OpKind(op.kind)) {
        case OpKind::kLinear:
            extra = true;
            values.read(op.src, op.n_in);
            if (op.extra) {
                values.read(op.extra, op.n_out);
                require(op.class_table == -1, "a class table beside an added value");
            }
            function_known();
            break;
        case OpKind::kTable:
            require(op.src == 0 && op.n_in == 0, "a table op reads a value");
            function_below(uint32_t(TableFunction::kCount));
            break;
        case OpKind::kMap:
            extra = true;
            values.read(op.src, op.n_in);
            require(op.extra <= 1 && op.n_out == (op.extra ? 2 * op.n_in : op.n_in),
                    "an op's widths differ from its values'");
            function_known();
            require(!op.extra || (op.function >= uint32_t(Function::kRelu) &&
                                  op.function <= uint32_t(Function::kMish)),
                    "an op's function has no slope");
            break;
        case OpKind::kBinary:
            extra = true;
            values.read(op.src, op.n_in);
            values.read(op.extra, op.n_in);
            require(op.n_in == op.n_out, "an op's widths differ from its values'");
            function_below(uint32_t(BinaryFunction::kCount));
            break;
        case OpKind::kNorm:
        case OpKind::kReduce:
            extra = true;
            values.read(op.src, op.n_in);
            require(op.extra >= 1 && op.n_in % op.extra == 0, "the groups do not divide the features");
            require(op.n_out == (OpKind(op.kind) == OpKind::kNorm ? op.n_in : op.extra),
                    "an op's widths differ from its values'");
            require(op.param >= 0.0f, "an epsilon is negative");
            function_below(OpKind(op.kind) == OpKind::kNorm ? uint32_t(NormFunction::kCount)
                                                            : uint32_t(ReduceFunction::kCount));
            break;
        case OpKind::kGather:
            values.read(op.src, values.width(op.src));
            function_below(1);
            require(op.src != op.dst, "an op reads what it writes");
            values.write(op.dst, op.extra, op.n_in);
            check_arrays(p, op);
            for (uint32_t j = 0; j < op.n_in; ++j) {
                const float index = p.blob[size_t(op.weight) + j];
                require(index >= 0.0f && index < float(p.widths[op.src]) && index == std::floor(index),
                        "an index is not a feature of the value");
            }
            return;
        default:
            fail("an op has an unknown kind");
    }
    require(extra || op.extra == 0, "an op's unused field is not zero");
    check_arrays(p, op);
    values.write(op.dst, 0, op.n_out);
}

void check_prologue_op(const TileOp& op) {
    const OpKind kind = OpKind(op.kind);
    require(kind == OpKind::kTable || op.src != 0, "an op of the prologue reads x");
    require(kind != OpKind::kBinary || op.extra != 0, "an op of the prologue reads x");
    require(op.step_table == -1, "an op of the prologue has a step table");
    require(kind != OpKind::kTable || TableFunction(op.function) != TableFunction::kJoint,
            "an op of the prologue has a joint table");
}

void check_ops(const Plan& p) {
    Values values(p);
    for (uint32_t i = 0; i < p.header.n_prologue; ++i) check_prologue_op(p.ops[i]);
    for (const TileOp& op : p.ops) check_op(p, op, values);
    for (size_t i = 0; i < p.widths.size(); ++i)
        require(values.filled[i] == p.widths[i], "a value is not written in full");
    require(p.widths[p.header.out_value] == p.header.dim, "the output's width is not dim");
}

}  // namespace

Plan parse_plan(const uint8_t* bytes, size_t size) {
    Reader in{bytes, size};
    Plan p;
    p.header = in.take<PlanHeader>(1, "the header")[0];
    check_header(p.header);
    p.rows = in.take<StepRow>(p.header.n_rows, "the rows");
    p.widths = in.take<uint32_t>((p.header.n_values + 15) / 16 * 16, "the value widths");
    for (size_t i = p.header.n_values; i < p.widths.size(); ++i)
        require(p.widths[i] == 0, "padding is not zero");
    p.widths.resize(p.header.n_values);
    for (uint32_t w : p.widths) require(w >= 1 && w <= kMaxWidth, "a value's width is not in 1..2048");
    require(p.widths[0] == p.header.dim, "value 0 is not dim wide");
    require(p.header.n_context == 0 || p.widths[1] == p.header.n_context, "value 1 is not n_context wide");
    p.ops = in.take<TileOp>(p.header.n_ops, "the ops");
    p.blob = in.take<float>(p.header.n_floats, "the blob");
    require(in.left == 0, "bytes follow the blob");
    check_array(p, p.header.null_context, 1, p.header.n_context, "the null context");
    check_rows(p);
    check_ops(p);
    return p;
}

}  // namespace df
