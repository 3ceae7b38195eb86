"""pyproject.toml says everything else; `tools/` is installed inside the package, as petface.tools,
so that it cannot collide with another `tools`.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["petface", "petface.*"]), "petface.tools"],
    package_dir={"petface.tools": "tools"},
)
