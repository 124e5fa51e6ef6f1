"""The process of one pipeline; the agent starts it with the number of a connected socket."""

from edgekit_runtime.pipelines import process

if __name__ == "__main__":
    process.main()
