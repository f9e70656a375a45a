#!/usr/bin/env bash
# What limits the tensor-core kernels: ncu metrics of one forward and backward per shape (D 64, 128; w 512, 1024).
#   native-ops/bench/profile.sh [BENCH_BINARY]
bench=${1:-$(dirname "$0")/../build/cuda/bench_kernels}
metrics=gpu__time_duration.sum,sm__inst_executed_pipe_tensor_op_hmma.avg.pct_of_peak_sustained_active,sm__pipe_tensor_op_hmma_cycles_active.avg.pct_of_peak_sustained_active,sm__inst_executed_pipe_xu.avg.pct_of_peak_sustained_active,sm__issue_active.avg.pct_of_peak_sustained_elapsed,l1tex__data_pipe_lsu_wavefronts_mem_shared.avg.pct_of_peak_sustained_elapsed,l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum,dram__throughput.avg.pct_of_peak_sustained_elapsed,lts__throughput.avg.pct_of_peak_sustained_elapsed,sm__warps_active.avg.per_cycle_active,smsp__inst_executed.sum,smsp__average_warps_issue_stalled_math_pipe_throttle_per_issue_active.ratio,smsp__average_warps_issue_stalled_short_scoreboard_per_issue_active.ratio,smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio,smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio,smsp__average_warps_issue_stalled_wait_per_issue_active.ratio,smsp__average_warps_issue_stalled_no_instruction_per_issue_active.ratio,smsp__average_warps_issue_stalled_mio_throttle_per_issue_active.ratio,smsp__average_warps_issue_stalled_dispatch_stall_per_issue_active.ratio,smsp__average_warps_issue_stalled_not_selected_per_issue_active.ratio
timeout 100 ncu --clock-control none --metrics $metrics -k "regex:Mma|Hopper" --csv "$bench" once 2>/dev/null | python3 -c "
import csv,sys,re,collections
d=collections.OrderedDict(); names=[]
for r in csv.DictReader(l for l in sys.stdin if l.startswith('\"')):
    n=re.sub(r'(void )?|gatedfwa::cuda::|\(.*\)$|Mma16<__nv_bfloat16>, ','',r['Kernel Name'])
    d.setdefault((r['Metric Name']),[]).append(r['Metric Value'])
    if r['ID'] not in [x[0] for x in names]: names.append((r['ID'],n[:30]))
print([n for _,n in names])
for k,v in d.items(): print(k.replace('smsp__average_warps_issue_stalled_','stall ').replace('.avg.pct_of_peak_sustained','%')[:70], v)
"
