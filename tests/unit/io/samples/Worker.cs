using System;
using System.Collections.Generic;
using System.Linq;
using System.Threading.Tasks;

namespace Example.Workers
{
    /// <summary>Where a worker is.</summary>
    public enum Phase
    {
        Idle = 0,
        Busy,
    }

    public delegate void Changed(object sender, Phase phase);

    /// <summary>Does work — größer.</summary>
    [Serializable]
    public class Worker<T> : IDisposable where T : class, new()
    {
        private const int Limit = 10;
        private readonly List<T> _items = new();
        public event Changed? OnChanged;

        public Worker(string name)
        {
            Name = name ?? throw new ArgumentNullException(nameof(name));
        }

        public string Name { get; }

        public Phase Phase
        {
            get => _phase;
            private set
            {
                _phase = value;
                OnChanged?.Invoke(this, value);
            }
        }
        private Phase _phase;

        public T this[int index] => _items[index];

        #region work
        public async Task<int> RunAsync(IEnumerable<T> items)
        {
            var taken = from item in items where item != null select item;
            foreach (var item in taken.Take(Limit))
            {
                await Task.Yield();
                _items.Add(item);
            }
            int Count() => _items.Count;
            return Count();
        }
        #endregion

        public static Worker<T> operator +(Worker<T> a, T b)
        {
            a._items.Add(b);
            return a;
        }

        ~Worker()
        {
            Dispose();
        }

        public void Dispose() => GC.SuppressFinalize(this);

        private struct Pair
        {
            public int Left, Right;
            public readonly override string ToString() => $"({Left}, {Right}) 🎉";
        }
    }

    public interface IShape
    {
        double Area();
        string Label => "shape";
    }

    public record Point(int X, int Y)
    {
        public double Length() => Math.Sqrt(X * X + Y * Y);
    }
}
