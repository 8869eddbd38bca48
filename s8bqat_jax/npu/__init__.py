"""The accelerator: what its arithmetic computes.

int8_matmul     its matrix product, bit for bit
matmul_report   what saturated or overflowed in one
"""

from s8bqat_jax.npu.matmul import Report, int8_matmul, matmul_report

__all__ = ['Report', 'int8_matmul', 'matmul_report']
