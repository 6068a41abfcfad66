"""TGIF-QA's frame questions (Jang et al., CVPR 2017, https://arxiv.org/abs/1704.04497), which both harnesses lack."""
